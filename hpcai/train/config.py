"""The options of `python -m hpcai.train`: one dataclass, filled from flags, --config FILE and HPCAI_* variables."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hpcai import environment
from hpcai.errors import UsageError
from hpcai.reduce.named import CHOICES
from hpcai.train import checks

_DESCRIPTION = """Train a model on all ranks that the launcher started, synchronously and data-parallel:

  mpirun -n 4 python -m hpcai.train --data fashion-mnist --model cnn --epochs 5

Every option can also stand in the YAML file given to --config or in a variable HPCAI_OPTION (HPCAI_LR=0.1, HPCAI_DATA_DIR);
flags win over variables, variables over the file. $HPCAI_DATA is a folder to look for data in, like HPCAI_DATA_DIR."""


def widths(value: Any) -> tuple[int, ...]:
    """Whole numbers above 0, written 1024,1024 or as a list."""
    parts = value.strip(" []").split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
    try:
        numbers = tuple(int(part) for part in parts if part != "")
    except (TypeError, ValueError):
        raise ValueError(f"wanted whole numbers such as 1024,1024, got {value!r}") from None
    if any(number < 1 for number in numbers):
        raise ValueError(f"wanted whole numbers above 0, got {value!r}")
    return numbers


def names(value: Any) -> tuple[str, ...]:
    """Names separated by commas, or a list of them."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(part.strip() if isinstance(part, str) else part for part in parts if part)


def patterns(value: Any) -> tuple[tuple[str, str], ...]:
    """PATTERN=CHOICE pairs separated by commas, or a mapping of patterns to choices."""
    if isinstance(value, dict):
        return tuple((str(pattern), str(choice)) for pattern, choice in value.items())
    pairs = [part if isinstance(part, (tuple, list)) else part.split("=") for part in names(value)] if value else []
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        raise ValueError(f"wanted PATTERN=CHOICE,..., got {value!r}")
    return tuple((pattern.strip(), choice.strip()) for pattern, choice in pairs)


def signal_names(value: Any) -> tuple[str, ...]:
    """Names of signals separated by commas, as in USR1,TERM, or none."""
    given = tuple(str(name).upper().removeprefix("SIG") for name in names(value))
    return () if given == ("NONE",) else given


def option(default: Any, text: str, kind: Callable[[Any], Any] | None = None) -> Any:
    """A field with its help text, and how to read it where its type alone does not say."""
    return dataclasses.field(default=default, metadata={"help": text, "type": kind})


@dataclass(frozen=True)
class Options:
    """Everything that a training run depends on."""

    data: str = option("digits", "data set: digits, fashion-mnist, mnist, csv:PATH, npz:PATH or text:PATH")
    data_dir: str | None = option(None, "folder with data files (else $HPCAI_DATA, then /usr/share/datasets)")
    label: str | None = option(None, "csv: the column to predict")
    ignore: tuple[str, ...] = option((), "csv: columns to leave out, A,B,...", names)
    model: Literal["softmax", "mlp", "cnn", "gpt"] | None = option(None, "model (mlp; for text gpt, which is for text alone)")
    hidden: tuple[int, ...] = option((512, 256), "mlp: widths of the hidden layers, N,N,...", widths)
    channels: tuple[int, ...] = option((32, 64), "cnn: channels of the convolutions, N,N,...", widths)
    activation: Literal["relu", "gelu"] = option("relu", "mlp: activation")
    layers: int = option(4, "gpt: blocks")
    width: int = option(128, "gpt: width of the residual stream")
    heads: int = option(4, "gpt: attention heads")
    context: int = option(128, "gpt: bytes that a prediction can see")
    norm: Literal["layer", "rms"] = option("layer", "gpt: LayerNorm or RMSNorm")
    tied: bool = option(False, "gpt: the scores' matrix is that of the embedding")
    dropout: float = option(0.0, "gpt: share of activations that is dropped after each branch in training")
    sample: int = option(0, "gpt: bytes of text to write at the end")
    mesh: str = option("", "ranks of each axis, dp=N,tp=N,pp=N; one left out takes what remains (all dp)")
    micro_batches: int = option(1, "parts of a rank's batch that are computed in turn: pipelining, or gradient accumulation")
    pipeline: Literal["gpipe", "1f1b", "interleaved", "zb-h1"] = option("1f1b", "schedule of pipeline stages")
    chunks: int | None = option(None, "interleaved: stages a rank (2)")
    zero: int = option(0, "what data-parallel ranks share out: 1 optimizer state, 2 gradients too, 3 parameters too (ZeRO)")
    recompute: bool = option(False, "compute activations again in backward instead of keeping them")
    trace: str | None = option(
        None, "file for the last step's timeline in Chrome's trace format; with --plot a picture beside it"
    )
    epochs: int | None = option(None, "passes over the training data (20 unless --steps is given)")
    steps: int | None = option(None, "stop after this many steps")
    batch: int = option(128, "samples in a step, over all ranks")
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "lamb"] = option("adam", "optimizer")
    lr: float | None = option(None, "learning rate (sgd 0.1; momentum, nesterov 0.02; adam, adamw 0.001; lamb 0.005)")
    momentum: float | None = option(None, "for sgd (0), momentum and nesterov (0.9)")
    weight_decay: float | None = option(None, "weight decay (adamw, lamb 0.01; others 0)")
    schedule: Literal["constant", "cosine", "step"] = option("constant", "course of the learning rate")
    warmup: int = option(0, "steps of linear warm-up")
    decay_steps: int = option(1000, "schedule step: multiply the learning rate by 0.1 every so many steps")
    clip: float = option(0.0, "limit of the gradient's global norm (0: none)")
    reduction: Literal["mean", "sum"] = option("mean", "gradient of the mean or of the sum of the losses in a global batch")
    seed: int = option(0, "seed of initial parameters and of the order of samples")
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
        None, "gradients are reduced in buckets of about this many bytes (1 MiB with --overlap, else 25 MiB)"
    )
    compress: str = option("none", f"how gradients travel: {', '.join(CHOICES)}, or auto (what is predicted to be quickest)")
    compress_layers: tuple[tuple[str, str], ...] = option(
        (), "other choices for some arrays: PATTERN=CHOICE,..., as in linear1.*=none,conv*=int4; the first that fits", patterns
    )
    compress_warmup: int = option(0, "steps before compression begins")
    compress_smallest: int = option(4096, "gradients that are reduced together travel uncompressed if they are fewer elements")
    no_error_feedback: bool = option(False, "forget what compression loses instead of adding it to the next step")
    grain: int = option(8, "compress reproducible: samples that are computed together, whatever the number of ranks")
    run: str | None = option(None, "folder for everything that is written (runs/DATA-MODEL)")
    metrics: str | None = option(None, "file of JSON lines, one a step (metrics.jsonl in the run's folder)")
    plot: bool = option(False, "plot the loss to loss.png in the run's folder (needs matplotlib)")
    resume: str = option("never", "never, auto (the newest checkpoint that is whole, if any), or the path or URL of one")
    checkpoint_steps: int = option(500, "write a checkpoint every so many steps, and at each epoch's end (0: only at the end)")
    checkpoints: str | None = option(None, "where checkpoints go: a folder or a URL, as s3://bucket/run (the run's folder)")
    keep: int = option(2, "checkpoints to keep")
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
    )
    stall_timeout: float | None = option(
        None, "seconds that ranks wait for one that does not come, before they say what it does and end the job (300)"
    )
    signals: tuple[str, ...] = option(
        ("USR1", "TERM"),
        "signals at which all ranks write a checkpoint and leave with exit code 85: NAME,... or none",
        signal_names,
    )


_LR = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02, "adam": 1e-3, "adamw": 1e-3, "lamb": 5e-3}


def parse(arguments: Sequence[str]) -> Options:
    """Options from flags, --config and the environment, checked one by one and filled with what depends on others.

    Raises: UsageError, one line. `--help` and `--print_config` print and raise SystemExit(0).
    """
    with environment.for_options(_switches()):
        parser = _parser()
        messages = io.StringIO()
        try:
            with contextlib.redirect_stderr(messages):
                values = parser.parse_args(list(arguments))
        except SystemExit as end:
            if not end.code:
                raise
            raise UsageError(_one_line(messages.getvalue())) from None
        except Exception as error:
            raise UsageError(_one_line(str(error))) from None
    return _filled(Options(**{field.name: getattr(values, field.name) for field in dataclasses.fields(Options)}))


def _switches() -> list[str]:
    """Options that are on or off."""
    return [name for name, hint in typing.get_type_hints(Options).items() if hint is bool]


def asks_only(arguments: Sequence[str]) -> bool:
    """True when the arguments ask for text (help), not for training."""
    return any(a in ("-h", "--help") or a.startswith("--print_config") for a in arguments)


def _parser() -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="hpcai.train", description=_DESCRIPTION, env_prefix="HPCAI", default_env=True, exit_on_error=False
    )
    parser.formatter_class = _formatter(parser.formatter_class)
    hints = typing.get_type_hints(Options)
    for field in dataclasses.fields(Options):
        how = field.metadata["type"] or hints[field.name]
        kind: dict[str, Any] = {"action": "store_true"} if how is bool else {"type": how}
        parser.add_argument(f"--{field.name.replace('_', '-')}", default=field.default, help=field.metadata["help"], **kind)
    parser.add_argument("--config", action="config", help="YAML file of options")
    return parser


def _formatter(parent: type) -> type:
    import argparse

    class Formatter(argparse.RawDescriptionHelpFormatter, parent):
        """Keeps the description's lines, and names readers without their address."""

        def _expand_help(self, action: argparse.Action) -> str:
            return re.sub(r"<function (\w+) at \w+>", r"\1", super()._expand_help(action))

    return Formatter


def _one_line(text: str) -> str:
    """The parser's complaint without its usage text, in the words of the command line."""
    said = re.sub(r"\s+", " ", text.split("error:")[-1]).strip()
    said = re.sub(
        r"^Unexpected config: (.{0,40}).*", r"--config wants a YAML file of options, got one that starts with '\1'", said
    )
    found = re.match(r'Parser key "(\w+)".*(?:Got|Given) value: (.*)', said) or re.match(
        r"argument --([\w-]+): invalid \w+ value: (.*)", said
    )
    if found and found[1].replace("-", "_") in Options.__dataclass_fields__:
        name = found[1].replace("-", "_")
        said = f"--{name.replace('_', '-')} wants {_wanted(name)}, got {found[2].strip(chr(39))!r}"
    return f"{said} (python -m hpcai.train --help lists the options)"


def _wanted(name: str) -> str:
    """In words, what an option's type accepts."""
    reader, hint = Options.__dataclass_fields__[name].metadata["type"], typing.get_type_hints(Options)[name]
    if reader is not None:
        return reader.__doc__.rstrip(".").lower()
    kinds = typing.get_args(hint) or (hint,)
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(kinds)}"
    if any(typing.get_origin(kind) is Literal for kind in kinds):
        return f"one of {', '.join(typing.get_args(kinds[0]))}"
    return "a whole number" if int in kinds else "a number" if float in kinds else "a text"


def _filled(given: Options) -> Options:
    """Fill in defaults that depend on other options, and check all."""
    model = given.model or ("gpt" if given.data.startswith("text:") else "mlp")
    o = dataclasses.replace(
        given,
        model=model,
        epochs=given.epochs if given.epochs is not None or given.steps is not None else 20,
        lr=given.lr if given.lr is not None else _LR[given.optimizer],
        redundancy=given.redundancy if given.redundancy is not None else int(given.elastic != "never" and given.zero > 0),
        chunks=given.chunks if given.chunks is not None else 2 if given.pipeline == "interleaved" else 1,
        run=given.run or f"runs/{Path(given.data.split(':')[-1]).name.split('.')[0]}-{model}",
    )
    checks.check(o)
    return o
