"""The options of training: one frozen dataclass, of which each field has its help and how it is read."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from hpcai import environment
from hpcai.reduce.named import CHOICES
from hpcai.train.options.readers import (
    MOST_F32,
    Reader,
    choice_or_own,
    names,
    number,
    patterns,
    resumed,
    signal_names,
    text_or_nothing,
    whole,
    widths,
)


def option(default: Any, text: str, kind: Reader | None = None) -> Any:
    """A field with its help text, and how to read it where its type alone does not say: bounds, or a form of its own."""
    return dataclasses.field(default=default, metadata={"help": text, "reader": kind})


@dataclass(frozen=True)
class Options:
    """Everything that a training run depends on."""

    data: str = option(
        "digits",
        "data set: digits, fashion-mnist, mnist, csv:PATH, npz:PATH, text:PATH, or package.module:function that makes one",
    )
    data_dir: str | None = option(None, "folder with data files (else $HPCAI_DATA if that is one, then /usr/share/datasets)")
    label: str | None = option(None, "csv: the column to predict")
    ignore: tuple[str, ...] = option((), "csv: columns to leave out, A,B,...", names)
    categorical: tuple[str, ...] = option((), "csv: columns whose values are names, taken as one-hot: A,B,...", names)
    task: Literal["classification", "regression"] | None = option(
        None, "csv, npz: whether labels are classes or a quantity (by themselves texts and few whole numbers are classes)"
    )
    model: str | None = option(
        None,
        "model (mlp; for text gpt, which is for text alone); a function makes one's own, and may want the data set",
        choice_or_own("softmax", "mlp", "cnn", "gpt"),
    )
    hidden: tuple[int, ...] = option((512, 256), "mlp: widths of the hidden layers, N,N,...", widths)
    channels: tuple[int, ...] = option((32, 64), "cnn: channels of the convolutions, N,N,...", widths)
    image_channels: Literal["last", "first"] | None = option(
        None, "cnn: whether an image of the data is (height, width, channels) or (channels, height, width) (last)"
    )
    activation: Literal["relu", "gelu"] = option("relu", "mlp: activation")
    layers: int = option(4, "gpt: blocks", whole(1, 1000))
    width: int = option(128, "gpt: width of the residual stream", whole(1, 1 << 20))
    heads: int = option(4, "gpt: attention heads", whole(1, 1 << 20))
    context: int = option(128, "gpt: bytes that a prediction can see", whole(1, 1 << 20))
    norm: Literal["layer", "rms"] = option("layer", "gpt: LayerNorm or RMSNorm")
    tied: bool = option(False, "gpt: the scores' matrix is that of the embedding")
    dropout: float = option(
        0.0, "gpt: share of activations that is dropped after each branch in training", number(least=0, below=1)
    )
    sample: int = option(0, "gpt: bytes of text to write at the end", whole(0, 1 << 30))
    mesh: str = option("", "ranks of each axis, dp=N,tp=N,pp=N; one left out takes what remains (all dp)", text_or_nothing)
    micro_batches: int = option(
        1, "parts of a rank's batch that are computed in turn: pipelining, or gradient accumulation", whole(1, 4096)
    )
    pipeline: Literal["gpipe", "1f1b", "interleaved", "zb-h1"] = option("1f1b", "schedule of pipeline stages")
    chunks: int | None = option(None, "interleaved: stages a rank (2)", whole(1, 10_000))
    zero: int = option(
        0, "what data-parallel ranks share out: 1 optimizer state, 2 gradients too, 3 parameters too (ZeRO)", whole(0, 3)
    )
    recompute: bool = option(False, "compute activations again in backward instead of keeping them")
    trace: str | None = option(
        None, "file for the last step's timeline in Chrome's trace format; with --plot a picture beside it"
    )
    epochs: int | None = option(None, "passes over the training data (20 unless --steps is given)", whole(1))
    steps: int | None = option(None, "stop after this many steps", whole(1))
    batch: int = option(128, "samples in a step, over all ranks", whole(1))
    optimizer: str = option("adam", "optimizer", choice_or_own("sgd", "momentum", "nesterov", "adam", "adamw", "lamb"))
    lr: float | None = option(
        None,
        "learning rate (sgd 0.1; momentum, nesterov 0.02; adam, adamw and one's own 0.001; lamb 0.005)",
        number(above=0, most=MOST_F32),
    )
    momentum: float | None = option(None, "for sgd (0), momentum and nesterov (0.9)", number(least=0, below=1))
    weight_decay: float | None = option(None, "weight decay (adamw, lamb 0.01; others 0)", number(least=0, most=MOST_F32))
    schedule: Literal["constant", "cosine", "step"] = option("constant", "course of the learning rate")
    warmup: int = option(0, "steps of linear warm-up")
    decay_steps: int = option(1000, "schedule step: multiply the learning rate by 0.1 every so many steps", whole(1))
    clip: float = option(0.0, "limit of the gradient's global norm (0: none)", number(least=0, most=MOST_F32))
    reduction: Literal["mean", "sum"] = option("mean", "gradient of the mean or of the sum of the losses in a global batch")
    seed: int = option(0, "seed of initial parameters and of the order of samples", whole(0, 2**64 - 1))
    dtype: Literal["f32", "f64", "bf16", "f16"] = option(
        "f32", "arithmetic; bf16, f16: what is stored and sent, with a master copy and arithmetic in f32"
    )
    algorithm: Literal["auto", "node", "hierarchical", "ring", "halving_doubling", "mpi"] = option(
        "auto", "all-reduce (auto: shared memory on a node, else by the cost model; mpi: the library's own)"
    )
    overlap: Literal["auto", "always", "never"] = option(
        "auto", "reduce gradients on a thread while backward computes the next (auto: where ranks span nodes)"
    )
    bucket_bytes: int | None = option(
        None, "gradients are reduced in buckets of about this many bytes (1 MiB with --overlap, else 25 MiB)", whole(1)
    )
    compress: str = option("none", f"how gradients travel: {', '.join(CHOICES)}, or auto (what is predicted to be quickest)")
    compress_layers: tuple[tuple[str, str], ...] = option(
        (), "other choices for some arrays: PATTERN=CHOICE,..., as in linear1.*=none,conv*=int4; the first that fits", patterns
    )
    compress_warmup: int = option(0, "steps before compression begins")
    compress_smallest: int = option(4096, "gradients that are reduced together travel uncompressed if they are fewer elements")
    no_error_feedback: bool = option(False, "forget what compression loses instead of adding it to the next step")
    grain: int = option(8, "compress reproducible: samples that are computed together, whatever the number of ranks", whole(1))
    run: str | None = option(None, "folder for everything that is written (runs/DATA-MODEL)")
    metrics: str | None = option(None, "file of JSON lines, one a step (metrics.jsonl in the run's folder)")
    plot: bool = option(False, "plot the loss to loss.png in the run's folder (needs matplotlib)")
    resume: str = option("never", "never, auto (the newest checkpoint that is whole, if any), or the path or URL of one", resumed)
    checkpoint_steps: int = option(500, "write a checkpoint every so many steps, and at each epoch's end (0: only at the end)")
    checkpoints: str | None = option(None, "where checkpoints go: a folder or a URL, as s3://bucket/run (the run's folder)")
    keep: int = option(2, "checkpoints to keep", whole(1))
    elastic: Literal["never", "shrink", "grow"] = option(
        "never",
        "when ranks fail, go on from memory without them, or with others in their place (mpirun --with-ft ulfm)",
    )
    spares: int = option(
        0, "with --elastic: ranks, the last of those started, that wait to take the places of ones that fail; two must train"
    )
    redundancy: int | None = option(
        None,
        "copies of each shard of --zero that other ranks keep, so that it is not lost with its rank (1 with --elastic)",
        whole(0, 1),
    )
    stall_timeout: float | None = option(
        None,
        "seconds that ranks wait for one that does not come, before they say what it does and end the job (300)",
        number(above=0, most=environment.MOST_S, what="seconds"),
    )
    signals: tuple[str, ...] = option(
        ("USR1", "TERM"),
        "signals at which all ranks write a checkpoint and leave with exit code 85: NAME,... or none",
        signal_names,
    )
