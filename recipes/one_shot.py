"""A trained decoder pruned in one shot: `python -m recipes.one_shot --help`.

Prunes the models of `recipes.language`, or one that it trains first, with a few windows of training
text and no training: by magnitude, by Wanda, by SparseGPT. Each goes through the network in the
order of its products, so that a layer is pruned with what the pruned layers before it give. Then
repairs it: by least squares to the outputs of the dense model, or by training a part. Writes
perplexity over sparsity, the error and the sparsity down the layers, and samples of text before
and after.

References: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models;
Frantar and Alistarh, 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot;
Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

import jaxprune as jp
from recipes import language
from recipes.common import (
    allocations,
    checkpoints,
    cli,
    flags,
    folder,
    lanes,
    outputs,
    repairs,
    trained,
)
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.models.decoder import place_of
from recipes.common.one_by_one import one_by_one
from recipes.common.repairs import Repair, Repaired
from recipes.language import Study, study_of
from recipes.reports import one_shot as report

METHODS = {
    "magnitude": jp.calibration.magnitude,
    "wanda": jp.calibration.wanda,
    "sparsegpt": jp.calibration.sparsegpt,
}
# what a trained model decides
OF_RUN = ("dataset", "data_dir", "text", "tokens", "vocabulary", "context", "model")
CALIBRATION = Key.STUDY + 1  # the purposes of a key: the windows that methods see,
ADAPT = Key.STUDY + 2  # the first adapters
BATCH = 64  # windows that a method sees at once, at most
WINDOWS = 64  # on which errors of layers are measured


def _not_a_target(flag: str, value: str, config: Any) -> str:
    try:
        allocations.fraction_of(value)
    except ValueError:
        return f"{flag} is a fraction in (0, 1), such as 0.5, or N:M, such as 2:4; got {value}"
    return ""


@dataclass(frozen=True)
class Config(language.Config):
    """A trained decoder pruned in one shot."""

    out: Path = Path("runs/one_shot")
    trained: Annotated[tuple[str, ...], flags.metavar("PATH"), flags.default("train one")] = ()
    """Folders of finished runs of recipes.language, whose models are pruned; their text and their
    sizes count in place of the flags."""
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = tuple(METHODS)
    """How weights are chosen, and whether the others make up for them (sparsegpt)."""
    sparsity: Annotated[tuple[str, ...], flags.Rule(_not_a_target), flags.DISTINCT] = (
        "0.5",
        "0.6",
        "0.7",
        "2:4",
        "4:8",
    )
    """Fractions that are pruned in each layer; N:M keeps N of M consecutive inputs."""
    allocation: Annotated[
        tuple[str, ...], flags.choice(allocations.ALLOCATIONS), flags.DISTINCT
    ] = ("uniform", "rd")
    """How fractions are divided among the layers: as much of each; by the scores of LAMP; or by the
    distortion that pruning each layer alone causes (rd). N:M is in each layer."""
    calibration: flags.Count = 128
    """Windows of training text that a method sees."""
    calibrations: flags.Count = 1
    """How often each model is pruned, each time with other windows."""
    repair: Annotated[tuple[str, ...], flags.choice(("none", *repairs.REPAIRS)), flags.DISTINCT] = (
        "reconstruct",
    )
    """What changes after pruning, under the masks: each layer, by least squares to its outputs in
    the dense model (reconstruct); or what trains: the scales of the norms; beside them low-rank
    adapters, which are pruned when they are merged (lora), or never touch what is pruned
    (masked_lora, scaled_lora); or all weights that are left (retrain)."""
    adapter_rank: flags.Count = 4
    """The rank of adapters."""
    repair_steps: flags.Count = 200
    """Training steps of a repair."""
    repair_rate: flags.Positive = 2e-3
    """The highest rate of a repair; the schedule is that of the training."""

    @property
    def repairs(self) -> tuple[str, ...]:
        """The repairs, without "none"."""
        return tuple(name for name in self.repair if name != "none")


def one_shot(config: Config) -> dict[str, Any]:
    """Prunes, writes `config.out`, prints a table; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite, config.resume)
    config = of_trained(config)
    s = study_of(config)
    check(config, s)
    cells, shared = cells_of(config), shared_of(config, s)
    with journal(config) as log:
        cell_of = lambda i: cells[i - 1] if i else None
        phase = lambda i, dense: one_phase(config, s, log, shared, cell_of(i), dense)
        lanes.phases(log, 1 + len(cells), lanes.shapes(s.program, models_of(config)), phase)
        records = [record for record in log.records if "method" in record]
        return report.write(config, s, models_of(config), records, log.seconds())


# --- the method -----------------------------------------------------------------------------------


class Cell(NamedTuple):
    """How models are pruned."""

    method: str
    sparsity: str
    allocation: str

    @property
    def name(self) -> str:
        """The name of a folder, and of a training."""
        parts = [self.method, self.sparsity.replace(":", "of"), self.allocation]
        return "-".join(part for part in parts if part != "uniform")


def cells_of(config: Config) -> list[Cell]:
    """All cells; in N:M nothing is left to allocate."""
    return [
        Cell(method, sparsity, allocation)
        for sparsity in config.sparsity
        for allocation in (("uniform",) if ":" in sparsity else config.allocation)
        for method in config.method
    ]


def pruned(s: Study, params: Any, how: str, target: allocations.Target, batches: Batches) -> Any:
    """The params of one model after one method, which sees batches of windows."""
    method = METHODS[how]
    if isinstance(target, tuple):
        return jp.calibration.prune_in_order(forward(s), params, batches, method(target))[0]
    methods = {path: method(sparsity) for path, sparsity in target.items()}
    return jp.calibration.prune_in_order(forward(s), params, batches, methods)[0]


def forward(s: Study) -> Callable[..., Any]:
    """(params, tokens (n, t)) -> logits."""
    return lambda params, tokens: s.apply({"params": params}, tokens)


Batches = list[np.ndarray]  # windows of training text (n, t), batches of one size


def windows(config: Config, s: Study, place: int) -> Batches:
    """The windows that every method sees the `place`-th time."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), CALIBRATION), place)
    rows = jax.random.choice(key, len(s.program.data.labels), (config.calibration,), replace=False)
    size = max(n for n in range(1, BATCH + 1) if config.calibration % n == 0)
    return np.split(np.asarray(s.program.data.images[rows]), config.calibration // size)


# --- the models -----------------------------------------------------------------------------------


def of_trained(config: Config) -> Config:
    """The configuration with the text and the size of the models that it prunes."""
    here = {} if config.data_dir is None else {"data_dir": config.data_dir}
    return replace(config, **(trained.of_runs(language.Config, config.trained, OF_RUN) | here))


def models_of(config: Config) -> int:
    """The number of models that are pruned."""
    seeds = [trained.run_of(language.Config, path).seeds for path in config.trained]
    return sum(seeds) or config.seeds


def check(config: Config, s: Study) -> None:
    """Raises `RecipeError` for sparsities that a layer can't have, and for too many windows."""
    available = len(s.program.data.labels)
    if config.calibration > available:
        raise RecipeError(
            f"--calibration {config.calibration} is more than all {available:,} windows"
        )
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), lanes.shapes(s.program, 1)
    )
    window = [np.asarray(s.program.data.images[:1])]
    for sparsity in config.sparsity:
        how = jp.calibration.magnitude(allocations.fraction_of(sparsity))
        prune = lambda p, how=how: jp.calibration.prune_in_order(forward(s), p, window, how)[0]
        try:
            jax.eval_shape(prune, one)
        except ValueError as error:
            raise RecipeError(f"--sparsity {sparsity}: {' '.join(str(error).split())}") from error


# --- the phases -----------------------------------------------------------------------------------


def one_phase(
    config: Config, s: Study, log: Journal, shared: Shared, cell: Cell | None, dense: Any
) -> tuple[Any, dict[str, Any]]:
    """First the trained models, then each cell; what it gives is a record."""
    if cell is None:
        paths = config.trained
        dense = trained.loaded(paths) if paths else language.trained(config, s, log).params
        first = Cell("dense", "0", "uniform")._asdict()
        return dense, told(config, s, dense, dense) | first
    before = lanes.repeat(dense, config.calibrations)
    ones = [lanes.lane_of(before, i) for i in range(len(jax.tree.leaves(before)[0]))]
    of_cell = partial(allocations.target_of, cell.allocation, cell.sparsity)
    targets = [of_cell(one, partial(shared.curves, i, one)) for i, one in enumerate(ones)]
    prune = lambda i, one: pruned(s, one, cell.method, targets[i], shared.windows(i))
    after = one_by_one(log, cell.name, before, prune, cell.method)
    save(config, cell, lanes.every(after.params, config.calibrations))
    record = told(config, s, after.params, before) | cell._asdict()
    record |= {
        "pruning_seconds": after.seconds.tolist(),
        "sparsities": allocations.by_kernel(targets),
    }
    record["repairs"] = {
        name: after_repair(config, s, repair(log, f"{name} {cell.name}", after.params, before))
        for name, repair in shared.repairs.items()
    }
    return dense, record | {"seconds": log.seconds()}


class Shared(NamedTuple):
    """What all cells share; `i` is the place in the stack of models, each for its windows."""

    windows: Callable[[int], Batches]  # of i
    curves: Callable[[int, Any], Any]  # of i and its params: distortions, measured once
    repairs: Mapping[str, Repair]


def shared_of(config: Config, s: Study) -> Shared:
    """The windows, the curves of distortion, and the repairs."""
    seen = lambda i: windows(config, s, i % config.calibrations)
    run, measured = forward(s), dict[int, Any]()

    def curves(i: int, params: Any) -> Any:
        if i not in measured:
            measured[i] = allocations.curves(run, params, seen(i))
        return measured[i]

    of = repairs.Repairs(
        program=s.program,
        forward=run,
        batches=seen,
        optimizer=language.optimizer(config.repair_rate, config.repair_steps),
        loss=language.next_token(s.program.module),
        steps=config.repair_steps,
        rank=config.adapter_rank,
        seed=config.seed,
        key=jax.random.fold_in(jax.random.key(config.seed), ADAPT),
    )
    return Shared(seen, curves, {name: repairs.repair(name, of) for name in config.repairs})


def after_repair(config: Config, s: Study, after: Repaired) -> dict[str, Any]:
    """What is measured of pruned models after a repair."""
    return {
        "test_bits": s.bits["test"](after.params).tolist(),
        "trained_weights": after.weights,
        "sample": language.written(config, s, lanes.lane_of(after.params, 0), 1)[0],
    }


def save(config: Config, cell: Cell, params: Any) -> None:
    """The models after a method with its first windows, a stack; masks say what is not zero."""
    masks = jax.tree.map(lambda w: w != 0, jp.kernels(params))
    checkpoints.save_model(config.out / folder.MODEL / cell.name, params, {}, masks)


def told(config: Config, s: Study, params: Any, dense: Any) -> dict[str, Any]:
    """What is measured of a stack of models: bits, weights kept, errors by layer, a sample."""
    kept = jax.tree.map(lambda w: w != 0, jax.vmap(jp.kernels)(params))
    counts = sum(x.reshape(len(x), -1).sum(1) for x in jax.tree.leaves(kept))
    by_layer = outputs.errors(s.program.module, params, dense, s.validation.images[:WINDOWS])
    return {
        "test_bits": s.bits["test"](params).tolist(),
        "kept_weights": np.asarray(counts).tolist(),
        "errors": {name: by_layer[name].tolist() for name in sorted(by_layer, key=place_of)},
        "sample": language.written(config, s, lanes.lane_of(params, 0), 1)[0],
    }


main = cli.command(Config, one_shot)

if __name__ == "__main__":
    main()
