"""Checks of options against each other. Checks of single options are declared with them (options.py)."""

from __future__ import annotations

from collections.abc import Mapping

from hpcai.data import sources
from hpcai.entry import Entry
from hpcai.errors import UsageError
from hpcai.nn.table import MODELS
from hpcai.optim.table import OPTIMIZERS
from hpcai.parallel.mesh import Sizes
from hpcai.reduce.named import by_name
from hpcai.reduce.reproducible import MOST
from hpcai.train.options import own_name
from hpcai.train.options.options import Options
from hpcai.train.options.readers import known_signals


def check(o: Options) -> None:
    """Raise UsageError for incompatible options. The message explains why."""
    for choice in [o.compress] * (o.compress != "auto") + [choice for _, choice in o.compress_layers]:
        by_name(choice, 1)
    refuse = [
        (
            o.momentum is not None and o.optimizer not in _taking("momentum"),
            f"--momentum is for {', '.join(_taking('momentum'))}; {o.optimizer} sets its own momentum",
        ),
        (o.compress != "none" and o.dtype != "f32", f"--compress {o.compress} works on f32; leave --dtype {o.dtype} out"),
        (o.compress_layers and o.compress == "none", "--compress-layers makes exceptions from --compress; give --compress too"),
        (
            "reproducible" in [o.compress, *(choice for _, choice in o.compress_layers)] and bool(o.compress_layers),
            "--compress reproducible applies to all arrays; leave --compress-layers out",
        ),
        (
            o.compress == "reproducible" and o.batch > o.fixed_micro_batch * MOST,
            f"--compress reproducible sums up to {MOST} grains; "
            f"--fixed-micro-batch {o.fixed_micro_batch} is too small for --batch {o.batch}",
        ),
        *_refused_elastic(o),
        *((name not in known_signals(), f"--signals knows {', '.join(known_signals())}; got {name}") for name in o.signals),
        (
            bool({"KILL", "STOP", "INT"} & set(o.signals)),
            "--signals: KILL and STOP cannot be handled, and INT (Ctrl-C) always asks the run to leave",
        ),
        (
            o.image_channels is not None and o.model not in _taking("image_channels", MODELS),
            f"--image-channels is for --model {' or '.join(_taking('image_channels', MODELS))}, not for {o.model}",
        ),
        *_refused_data(o),
        *_refused_rehearsals(o),
        *_refused_splits(o),
    ]
    for wrong, message in [*refuse, *_refused_by_entries(o, None)]:
        if wrong:
            raise UsageError(message)


def _refused_data(o: Options) -> list[tuple[bool, str]]:
    return [
        (
            bool(o.label_column or o.ignore_columns or o.categorical_columns) and not o.data.startswith("csv:"),
            f"--label-column, --ignore-columns and --categorical-columns name columns of --data csv:PATH, "
            f"got {o.data}{_with_kind(o.data, 'csv')}",
        ),
        (
            o.task is not None and not o.data.startswith(("csv:", "npz:")),
            f"--task is for csv:PATH and npz:PATH{_with_kind(o.data, 'csv', 'npz') or f'; {o.data} has a fixed task'}",
        ),
        (
            (o.keep_best or "").startswith("validation_") and o.validation is None and not own_name.is_own(o.data),
            f"--keep-best {o.keep_best} needs data for validation; give --validation FRACTION, as in --validation 0.1",
        ),
        (
            o.class_weights is not None and o.data.startswith("text:"),
            f"--class-weights are for classes, but --data {o.data} is text; leave them out",
        ),
        (
            o.class_weights is not None and o.task == "regression",
            "--class-weights are for classes; leave them out with --task regression",
        ),
    ]


def _refused_rehearsals(o: Options) -> list[tuple[bool, str]]:
    return [
        (o.dry_run and o.find_lr, "--dry-run writes nothing, but --find-lr writes a file; give only one of them"),
        (
            (o.dry_run or o.find_lr) and (o.elastic != "never" or o.spare_ranks > 0),
            f"--{'dry-run' if o.dry_run else 'find-lr'} starts no run that could recover; leave --elastic and --spare-ranks out",
        ),
        (o.find_lr and o.resume not in ("never", "auto"), "--find-lr begins with fresh parameters; leave --resume out"),
    ]


def _refused_by_entries(o: Options, axes: Sizes | None) -> list[tuple[bool, str]]:
    """Return the error messages of the table entries (optimizer, model) that the options name."""
    rows = [OPTIMIZERS.get(o.optimizer), MODELS.get(o.model or "")]
    said = [row.refuses(o, axes) for row in rows if row is not None]
    return [(bool(one), one) for one in said]


def _taking(option: str, table: Mapping[str, Entry] = OPTIMIZERS) -> list[str]:
    """Return the names of a table's entries that take an option."""
    return [name for name, row in table.items() if option in row.options]


def _with_kind(data: str, *kinds: str) -> str:
    """Return a suggestion of the path with one of these kinds in front, to be appended to an error message."""
    whole = sources.with_kind(data, kinds[0])
    return f"; write --data {whole}" if whole.partition(":")[0] in kinds else ""


def _refused_elastic(o: Options) -> list[tuple[bool, str]]:
    """Return checks of options that conflict with elastic training: whether each fails, and its message."""
    return [
        (
            o.spare_ranks > 0 and o.elastic == "never",
            "--spare-ranks take the places of ranks that fail: give --elastic shrink or grow too",
        ),
        (bool(o.redundancy) and not o.zero, "--redundancy copies shards, but without --zero every rank has everything"),
        (
            bool(o.redundancy) and (o.zero == 3 or o.dtype in ("bf16", "f16")),
            "--redundancy copies optimizer state, not parameters; take --zero 1 or 2 and --dtype f32 or f64",
        ),
        (
            o.elastic != "never" and o.allreduce_algorithm == "mpi",
            f"--elastic {o.elastic}: sums of the MPI library are not reliable when a rank fails; "
            "leave --allreduce-algorithm mpi out",
        ),
        (
            o.elastic != "never" and (o.zero == 3 or (o.zero > 0 and o.dtype in ("bf16", "f16"))),
            f"--elastic {o.elastic} needs all parameters on every rank; take --zero 1 or 2 with --dtype f32 or f64, or --zero 0",
        ),
    ]


def _refused_splits(o: Options) -> list[tuple[bool, str]]:
    """Return checks of options of models, micro-batches and shards that conflict on any mesh: whether each fails, its message."""
    text = o.data.startswith("text:")
    grains = o.compress == "reproducible"
    return [
        (
            o.model == "gpt" and not text and not own_name.is_own(o.data),
            f"--model gpt learns from text: give --data text:PATH, got {o.data}{_with_kind(o.data, 'text')}",
        ),
        (
            text and o.model in MODELS and o.model not in _taking("context", MODELS),
            f"--data {o.data} is text, but --model {o.model} does not learn from text; take --model gpt",
        ),
        (o.sample_bytes > 0 and o.model != "gpt", f"--sample-bytes {o.sample_bytes} writes text, so it is for --model gpt"),
        (grains and bool(o.trace_file), "--compress reproducible has no micro-batches to trace; leave --trace-file out"),
        (grains and o.dtype != "f32", f"--compress reproducible works on f32; leave --dtype {o.dtype} out"),
        (o.batch % o.micro_batches > 0, f"--batch {o.batch} is not divisible by --micro-batches {o.micro_batches}"),
        (
            o.pipeline_schedule != "interleaved" and (o.pipeline_chunks or 1) != 1,
            f"--pipeline-chunks is for --pipeline-schedule interleaved; {o.pipeline_schedule} has one stage per rank",
        ),
        (
            o.zero > 1 and o.compress != "none",
            f"--zero {o.zero} keeps no whole gradient for --compress {o.compress} to encode; take --zero 1",
        ),
        (grains and o.zero > 0, "--compress reproducible sums whole gradients as integers; leave --zero out"),
        (
            grains and o.micro_batches > 1,
            "--compress reproducible uses --fixed-micro-batch instead; leave --micro-batches out",
        ),
        (o.zero > 1 and o.overlap == "always", f"--zero {o.zero} reduces gradients during backward; leave --overlap always out"),
        (
            o.recompute and o.pipeline_schedule == "zb-h1",
            "--pipeline-schedule zb-h1 delays the gradients of weights and needs their activations; leave --recompute out",
        ),
    ]


def check_mesh(o: Options, dp: int, tp: int, pp: int) -> None:
    """Raise UsageError for options that are incompatible with this mesh. If sizes do not divide, the message suggests some."""
    mesh, grains = f"dp={dp},tp={tp},pp={pp}", o.compress == "reproducible"
    split = tp > 1 or pp > 1
    refuse = [
        (tp > 1 and o.model != "gpt", f"--mesh {mesh}: tensor parallelism is for --model gpt; {o.model} takes dp and pp"),
        (
            o.batch % (dp * o.micro_batches) > 0 and o.micro_batches > 1 and (split or o.elastic == "never"),
            f"--batch {o.batch} does not divide into {o.micro_batches} micro-batches on each of dp={dp} ranks; "
            f"--batch {-(-o.batch // (dp * o.micro_batches)) * dp * o.micro_batches} divides",
        ),
        (o.batch < dp, f"--batch {o.batch} is smaller than the number of ranks, {dp}; give each rank at least one sample"),
        (
            o.elastic != "never" and split,
            f"--mesh {mesh}: --elastic {o.elastic} is only for dp, where every rank has the whole model; leave tp and pp out",
        ),
        (grains and split, f"--mesh {mesh}: --compress reproducible is for whole models; leave tp and pp out"),
        (o.overlap == "always" and split, f"--mesh {mesh}: --overlap always is only for dp; leave it out"),
        (
            o.tied and pp > 1 and (o.zero > 1 or o.compress != "none"),
            f"--tied with pp={pp} keeps the embedding on two stages and sums its whole gradients; take --zero 0 or 1 and no "
            "--compress, or leave --tied out",
        ),
        (
            o.compress == "auto" and split,
            f"--mesh {mesh}: --compress auto predicts only for dp; name a choice, as in --compress int8",
        ),
        (
            pp == 1 and (o.pipeline_chunks or 1) > 1,
            f"--pipeline-chunks {o.pipeline_chunks} is for pipelines, but pp=1 in --mesh {mesh}",
        ),
    ]
    for wrong, message in [*refuse, *_refused_by_entries(o, Sizes(dp, tp, pp))]:
        if wrong:
            raise UsageError(message)
