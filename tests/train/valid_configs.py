"""Files of options that are right, of all shapes: what a fuzzer mutates (make fuzz-inputs)."""

VALID = (
    "lr: 0.1\n",
    "data: digits\nmodel: softmax\noptimizer: sgd\nlr: 1e-2\nsteps: 3\n",
    "model: mlp\nhidden: [64, 32]\nactivation: gelu\nbatch: 37\nepochs: 2\nseed: 18446744073709551615\n",
    "hidden: 1024,1024\nclip: .5\nweight_decay: 1E-4\nschedule: cosine\nwarmup: 5\n",
    "hidden: []\noptimizer: momentum\nmomentum: 0.0\ndecay_steps: 10\nschedule: step\n",
    "model: cnn\nchannels: 4\ndtype: bf16\nreduction: sum\n",
    "# a comment\n---\noverlap: no\nelastic: off\nresume: no\nplot: false\nrecompute: 'no'\n...\n",
    "compress: topk:0.01\ncompress_layers: {linear1.*: none, 'conv*': int4}\ncompress-warmup: 10\ncompress-smallest: 0\n",
    "compress: int8\ncompress_layers: linear1.*=none,conv*=int4\nno_error_feedback: yes\nbucket_bytes: 4096\n",
    "compress: reproducible\ngrain: 16\nbatch: 128\n",
    "data: text:shakespeare.txt\nlayers: 2\nwidth: 32\nheads: 4\ncontext: 16\nnorm: rms\ntied: true\ndropout: 0.1\nsample: 20\n",
    "data: text:a.txt\nmesh: dp=2,tp=2,pp=2\npipeline: interleaved\nchunks: 2\nmicro_batches: 8\nzero: 1\ntrace: t.json\n",
    "data: csv:table.csv\nlabel: y\nignore:\n- a\n- b c\nmodel: softmax\nrun: runs/é ü\n",
    "data: 'npz:a: b.npz'\nlabel: null\nmetrics: ~\ntrace:\nrun: \"runs/x\"\n",
    "zero: 2\nelastic: shrink\nspares: 1\nredundancy: 1\nstall_timeout: 12.5\nsignals: USR1,TERM\nkeep: 3\n",
    "signals: [usr1, SIGHUP]\ncheckpoint_steps: 0\ncheckpoints: s3://bucket/run\nresume: auto\nalgorithm: ring\n",
    "signals: none\nhidden: &widths [8, 8]\nchannels: *widths\n",
    "{lr: 0.1, batch: 64, hidden: [3, 4]}\n",
    "\ufefflr: 0.1\r\nbatch: 64\r\n",
)
