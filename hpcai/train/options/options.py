"""The options of training: one frozen dataclass. Each field declares its default, its help text and its reader."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

from hpcai import environment
from hpcai.comm.algorithms.table import ALGORITHMS
from hpcai.data.sources import SOURCES
from hpcai.entry import defaults
from hpcai.nn.table import MODELS
from hpcai.optim.table import OPTIMIZERS
from hpcai.reduce.named import CHOICES
from hpcai.train.options.readers import (
    MOST_F32,
    Reader,
    choice,
    choice_or_own,
    class_weights,
    names,
    number,
    patterns,
    resumed,
    signal_names,
    text_or_nothing,
    whole,
    widths,
)


def option(group: str, default: Any, text: str, kind: Reader | None = None) -> Any:
    """Declare a field of a group, with its help text. kind: its reader, if the type alone does not say the bounds or the form."""
    return dataclasses.field(default=default, metadata={"help": text, "reader": kind, "group": group})


GROUPS = {
    "data": "the training data",
    "model": "the model that is trained",
    "optimizer": "how parameters change",
    "length": "how long a run trains",
    "parallelism": "how ranks share the work",
    "compression": "how gradients are sent between ranks",
    "output": "files that a run writes beside checkpoints",
    "checkpoints": "how a run is saved and resumed",
    "failures": "how a run continues when ranks fail, or ends",
}
"""The groups of --help, with a description of each."""

RENAMED = {
    "run": "run_dir",
    "checkpoints": "checkpoint_dir",
    "keep": "keep_checkpoints",
    "clip": "clip_norm",
    "schedule": "lr_schedule",
    "warmup": "lr_warmup_steps",
    "decay_steps": "lr_decay_steps",
    "metrics": "metrics_file",
    "trace": "trace_file",
    "label": "label_column",
    "ignore": "ignore_columns",
    "categorical": "categorical_columns",
    "chunks": "pipeline_chunks",
    "pipeline": "pipeline_schedule",
    "spares": "spare_ranks",
    "sample": "sample_bytes",
    "grain": "fixed_micro_batch",
    "reduction": "loss_reduction",
    "algorithm": "allreduce_algorithm",
    "compress_warmup": "compress_warmup_steps",
}
"""Earlier names of options and the new names. Earlier names are still read; a line on stderr says the new name."""

OWN_LR = 1e-3
"""The default learning rate of a user's own optimizer."""

_data = functools.partial(option, "data")
_model = functools.partial(option, "model")
_optimizer = functools.partial(option, "optimizer")
_length = functools.partial(option, "length")
_parallelism = functools.partial(option, "parallelism")
_compression = functools.partial(option, "compression")
_output = functools.partial(option, "output")
_checkpoints = functools.partial(option, "checkpoints")
_failures = functools.partial(option, "failures")


@dataclass(frozen=True)
class Options:
    """Everything that a training run depends on."""

    # data
    data: str = _data(
        "digits",
        f"data set: {', '.join(SOURCES)}, or package.module:function that returns a data set",
    )
    data_dir: str | None = _data(None, "folder with data files (else $HPCAI_DATA if it is a folder, then /usr/share/datasets)")
    label_column: str | None = _data(None, "csv: the column to predict")
    ignore_columns: tuple[str, ...] = _data((), "csv: columns to leave out, A,B,...", names)
    categorical_columns: tuple[str, ...] = _data((), "csv: columns whose values are names, encoded as one-hot: A,B,...", names)
    task: Literal["classification", "regression"] | None = _data(
        None, "csv, npz: whether labels are classes or a quantity (default: texts and a few whole numbers are classes)"
    )
    validation: float | None = _data(
        None,
        "fraction of the training samples to hold out for validation, the same of each class; for text, its tail",
        number(above=0, below=1),
    )
    batch: int = _data(128, "samples per step, over all ranks", whole(1))

    # model
    model: str | None = _model(
        None,
        "model (default: gpt for text, else mlp; gpt is only for text); your own function may take the data set",
        choice_or_own(*MODELS),
    )
    hidden: tuple[int, ...] = _model((512, 256), "mlp: widths of the hidden layers, N,N,...", widths)
    channels: tuple[int, ...] = _model((32, 64), "cnn: channels of the convolutions, N,N,...", widths)
    image_channels: Literal["last", "first"] | None = _model(
        None, "cnn: channels of an image are last: (height, width, channels), or first: (channels, height, width) (last)"
    )
    activation: Literal["relu", "gelu"] = _model("relu", "mlp: activation")
    layers: int = _model(4, "gpt: blocks", whole(1, 1000))
    width: int = _model(128, "gpt: width of the residual stream", whole(1, 1 << 20))
    heads: int = _model(4, "gpt: attention heads", whole(1, 1 << 20))
    context: int = _model(128, "gpt: bytes that a prediction can see", whole(1, 1 << 20))
    norm: Literal["layer", "rms"] = _model("layer", "gpt: LayerNorm or RMSNorm")
    tied: bool = _model(False, "gpt: use the matrix of the embedding for the scores too")
    dropout: float = _model(0.0, "gpt: fraction of activations dropped after each branch in training", number(least=0, below=1))
    sample_bytes: int = _model(0, "gpt: bytes of text to generate at the end", whole(0, 1 << 30))
    loss_reduction: Literal["mean", "sum"] = _model("mean", "gradient of the mean or of the sum of the losses in a global batch")
    class_weights: str | tuple[float, ...] | tuple[tuple[str, float], ...] | None = _model(
        None,
        "weights of classes in the loss: balanced (rare classes weigh more: samples / (classes * samples of the class)), by "
        "label as in the data (others: 1), or in the order of the labels",
        class_weights,
    )
    seed: int = _model(0, "seed of initial parameters and of the order of samples", whole(0, 2**64 - 1))

    # optimizer
    optimizer: str = _optimizer("adam", "optimizer", choice_or_own(*OPTIMIZERS))
    lr: float | None = _optimizer(
        None,
        f"learning rate ({defaults(OPTIMIZERS, 'lr')}; your own optimizer {OWN_LR})",
        number(above=0, most=MOST_F32),
    )
    momentum: float | None = _optimizer(None, f"momentum ({defaults(OPTIMIZERS, 'momentum')})", number(least=0, below=1))
    weight_decay: float | None = _optimizer(
        None, f"weight decay ({defaults(OPTIMIZERS, 'weight_decay')})", number(least=0, most=MOST_F32)
    )
    find_lr: bool = _optimizer(
        False, "look for a learning rate: raise it from step to step, print where the loss falls steepest, and train nothing"
    )
    lr_schedule: Literal["constant", "cosine", "step"] = _optimizer("constant", "schedule of the learning rate")
    lr_warmup_steps: int = _optimizer(0, "steps of linear warm-up")
    lr_decay_steps: int = _optimizer(1000, "schedule step: multiply the learning rate by 0.1 every this many steps", whole(1))
    clip_norm: float = _optimizer(0.0, "limit of the gradient's global norm (0: no limit)", number(least=0, most=MOST_F32))

    # length
    epochs: int | None = _length(None, "passes over the training data (20 unless --steps is given)", whole(1))
    steps: int | None = _length(None, "stop after this many steps", whole(1))
    patience: int | None = _length(
        None,
        "end after this many epochs without a better --keep-best (validation_loss, or without --validation test_loss)",
        whole(1),
    )

    # parallelism
    mesh: str = _parallelism(
        "", "ranks of each axis, dp=N,tp=N,pp=N; the first missing axis takes the rest (all dp)", text_or_nothing
    )
    micro_batches: int = _parallelism(
        1, "parts of a rank's batch, computed one after another: for pipelining or gradient accumulation", whole(1, 4096)
    )
    pipeline_schedule: Literal["gpipe", "1f1b", "interleaved", "zb-h1"] = _parallelism("1f1b", "schedule of pipeline stages")
    pipeline_chunks: int | None = _parallelism(None, "interleaved: stages per rank (2)", whole(1, 10_000))
    zero: int = _parallelism(
        0, "divide among data-parallel ranks: 1 optimizer state, 2 also gradients, 3 also parameters (ZeRO)", whole(0, 3)
    )
    recompute: bool = _parallelism(False, "compute activations again in backward instead of keeping them")
    dtype: Literal["f32", "f64", "bf16", "f16"] = _parallelism(
        "f32", "type of numbers; bf16, f16: for storing and sending, with a master copy and arithmetic in f32"
    )
    overlap: Literal["auto", "always", "never"] = _parallelism(
        "auto", "reduce gradients on a thread while backward computes the next ones (auto: if ranks span nodes)"
    )
    bucket_bytes: int | None = _parallelism(
        None, "reduce gradients in buckets of about this many bytes (1 MiB with --overlap, else 25 MiB)", whole(1)
    )
    allreduce_algorithm: str = _parallelism(
        "auto",
        "all-reduce (auto: shared memory on a node, else by a cost model; mpi: MPI_Allreduce of the MPI library)",
        choice("auto", "node", *ALGORITHMS),
    )

    # compression
    compress: str = _compression(
        "none", f"how gradients are sent: {', '.join(CHOICES)}, or auto (the choice predicted to be fastest)"
    )
    compress_layers: tuple[tuple[str, str], ...] = _compression(
        (), "other choices for some arrays: PATTERN=CHOICE,..., as in linear1.*=none,conv*=int4; the first match counts", patterns
    )
    compress_warmup_steps: int = _compression(0, "steps before compression begins")
    compress_smallest: int = _compression(
        4096, "send gradients uncompressed if fewer than this many elements are reduced together"
    )
    no_error_feedback: bool = _compression(False, "drop the compression residual instead of adding it to the next step")
    fixed_micro_batch: int = _compression(
        8, "compress reproducible: samples that are computed together, for any number of ranks", whole(1)
    )

    # output
    run_dir: str | None = _output(None, "folder for all files of the run (runs/DATA-MODEL)")
    dry_run: bool = _output(False, "print what would be trained, with memory and time, and write nothing")
    metrics_file: str | None = _output(None, "file of JSON lines, one per step (metrics.jsonl in the run's folder)")
    plot: bool = _output(False, "plot the loss to loss.png in the run's folder (needs matplotlib)")
    trace_file: str | None = _output(
        None, "file for the last step's timeline in Chrome's trace format; with --plot a picture beside it"
    )

    # checkpoints
    resume: str = _checkpoints(
        "never", "never, auto (the newest complete checkpoint, if any), or the path or URL of a checkpoint", resumed
    )
    checkpoint_steps: int = _checkpoints(
        500, "write a checkpoint every this many steps, and at each epoch's end (0: only at the end)"
    )
    checkpoint_dir: str | None = _checkpoints(
        None, "place for checkpoints: a folder or a URL, as in s3://bucket/run (default: in the run's folder)"
    )
    keep_best: Literal["validation_loss", "validation_accuracy", "test_loss", "test_accuracy", "loss"] | None = _checkpoints(
        None, "keep also the checkpoint of the epoch with the best value of this figure"
    )
    keep_checkpoints: int = _checkpoints(2, "number of checkpoints to keep", whole(1))
    signals: tuple[str, ...] = _checkpoints(
        ("USR1", "TERM"),
        "signals at which all ranks write a checkpoint and leave with exit code 85: NAME,... or none",
        signal_names,
    )

    # failures
    elastic: Literal["never", "shrink", "grow"] = _failures(
        "never",
        "when ranks fail, continue from memory without them (shrink) or with new ones (grow); needs mpirun --with-ft ulfm",
    )
    spare_ranks: int = _failures(
        0, "with --elastic: the last N ranks wait to take the places of failed ranks; at least two must train"
    )
    redundancy: int | None = _failures(
        None,
        "copies of each --zero shard that other ranks keep, so that a failed rank's shard is not lost (1 with --elastic)",
        whole(0, 1),
    )
    stall_timeout: float | None = _failures(
        None,
        "seconds that ranks wait for a missing rank before they report what it does and end the job (300)",
        number(above=0, most=environment.MOST_S, what="seconds"),
    )
