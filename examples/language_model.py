"""A byte-level language model on a text: mpirun -n 2 python examples/language_model.py FILE [name=value ...], as in mesh=tp=2"""

import sys
from typing import Any

import hpcai

OPTIONS: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "context": 64, "batch": 16, "steps": 200}
OPTIONS |= {"optimizer": "adamw", "lr": 3e-3, "clip_norm": 1.0, "run_dir": "runs/language"}

if __name__ == "__main__":
    OPTIONS |= dict(word.split("=", 1) for word in sys.argv[2:])
    trained = hpcai.fit("gpt", f"text:{sys.argv[1]}", **OPTIONS)
    if hpcai.init().rank == 0:
        scores = trained.scores([list(b"The quick brown fox jumps over the lazy dog. The quick brown fo "[:64])])
        print(f"loss {trained.history[-1]['loss']:.3f} nats a byte; next byte {bytes([scores[-1].argmax()])!r}")
