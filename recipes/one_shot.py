"""A trained decoder pruned in one shot: `python -m recipes.one_shot --help`.

Prunes the models of `recipes.language`, or one that it trains first, with a few windows of training
text and no training: by magnitude, by Wanda, by SparseGPT. Each goes through the network in the
order of its products, so that a layer is pruned with what the pruned layers before it give. Then
repairs it, if asked. Writes perplexity over sparsity, the error down the layers, and samples of
text before and after.

References: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models;
Frantar and Alistarh, 2023, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot;
Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes import language
from recipes.common import checkpoints, cli, flags, folder, lanes
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.repairs import REPAIRS, Repair, repair, repaired
from recipes.language import Study, study_of
from recipes.reports import one_shot as report

METHODS = {
    "magnitude": jp.calibration.magnitude,
    "wanda": jp.calibration.wanda,
    "sparsegpt": jp.calibration.sparsegpt,
}
OF_RUN = ("dataset", "data_dir", "text", "context", "model")  # what a trained model decides
CALIBRATION = Key.STUDY + 1  # the purposes of a key: the windows that methods see,
ADAPT = Key.STUDY + 2  # the first adapters
BATCH = 64  # windows that a method sees at once, at most
WINDOWS = 64  # on which errors of layers are measured
LAYERS = ("query", "key", "value", "qkv", "out", "gate", "up", "down")  # in the order of data


def _not_a_target(flag: str, value: str, config: Any) -> str:
    try:
        target_of(value)
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
    calibration: flags.Count = 128
    """Windows of training text that a method sees."""
    calibrations: flags.Count = 1
    """How often each model is pruned, each time with other windows."""
    repair: Annotated[tuple[str, ...], flags.choice(REPAIRS), flags.default("none")] = ()
    """What trains after pruning, under the masks: the scales of the norms; beside them low-rank
    adapters, which are pruned when they are merged (lora), or never touch what is pruned
    (masked_lora, scaled_lora); or all weights that are left (retrain)."""
    adapter_rank: flags.Count = 4
    """The rank of adapters."""
    repair_steps: flags.Count = 200
    """Steps of a repair."""
    repair_rate: flags.Positive = 2e-3
    """The highest rate of a repair; the schedule is that of the training."""


def one_shot(config: Config) -> dict[str, Any]:
    """Prunes, writes `config.out`, prints a table; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite, config.resume)
    config = of_trained(config)
    s = study_of(config)
    check(config, s)
    cells = [(method, sparsity) for sparsity in config.sparsity for method in config.method]
    with journal(config) as log:
        shared = config, s, log, repairs_of(config, s)
        phase = lambda i, dense: one_phase(*shared, cells[i - 1] if i else None, dense)
        lanes.phases(log, 1 + len(cells), shapes(s, models_of(config)), phase)
        records = [record for record in log.records if "method" in record]
        return report.write(config, s, models_of(config), records, log.seconds())


# --- the method -----------------------------------------------------------------------------------


def pruned(s: Study, params: Any, method: str, sparsity: str, batches: np.ndarray) -> Any:
    """The params of one model after one method, which sees windows of text (n, t)."""
    forward = lambda params, tokens: s.apply({"params": params}, tokens)
    how = METHODS[method](target_of(sparsity))
    size = max(n for n in range(1, BATCH + 1) if len(batches) % n == 0)
    parts = np.split(batches, len(batches) // size)
    return jp.calibration.prune_in_order(forward, params, parts, how)[0]


def target_of(sparsity: str) -> float | tuple[int, int]:
    """The fraction "0.5", or "2:4" as (2, 4); raises ValueError for anything else."""
    if ":" in sparsity:
        n, m = map(int, sparsity.split(":"))
        if not 1 <= n < m:
            raise ValueError(sparsity)
        return n, m
    if not 0 < float(sparsity) < 1:
        raise ValueError(sparsity)
    return float(sparsity)


def windows(config: Config, s: Study, place: int) -> np.ndarray:
    """The windows (n, t) of training text that every method sees the `place`-th time."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), CALIBRATION), place)
    rows = jax.random.choice(key, len(s.program.data.labels), (config.calibration,), replace=False)
    return np.asarray(s.program.data.images[rows])


# --- the models -----------------------------------------------------------------------------------


def of_trained(config: Config) -> Config:
    """The configuration with the text and the size of the models that it prunes.

    Raises `RecipeError` for a folder without a finished run, and for runs that differ.
    """
    runs = [run_of(Path(path)) for path in config.trained]
    for run in runs:
        for name in OF_RUN:
            if getattr(run, name) != getattr(runs[0], name):
                raise RecipeError(
                    f"--trained: {flags.flag_of(name)} is {getattr(runs[0], name)} in "
                    f"'{runs[0].out}' and {getattr(run, name)} in '{run.out}'"
                )
    here = {} if config.data_dir is None else {"data_dir": config.data_dir}
    of_run = {name: getattr(run, name) for run in runs[:1] for name in OF_RUN}
    return replace(config, **(of_run | here))


def run_of(path: Path) -> language.Config:
    """The configuration of a finished run of `recipes.language`."""
    if not (path / folder.SUMMARY).is_file():
        raise RecipeError(f"--trained: there is no finished run of recipes.language in '{path}'")
    return replace(cli.from_yaml(language.Config, path / folder.CONFIG), out=path)


def models_of(config: Config) -> int:
    """The number of models that are pruned."""
    seeds = [run_of(Path(path)).seeds for path in config.trained]
    return sum(seeds) or config.seeds


def shapes(s: Study, models: int) -> Any:
    """The shapes of a stack of so many models."""
    return jax.eval_shape(
        lambda: lanes.initial(s.program, lanes.seed_keys(0, models))._replace(masks=None)
    ).params


def check(config: Config, s: Study) -> None:
    """Raises `RecipeError` for sparsities that a layer can't have, and for too many windows."""
    available = len(s.program.data.labels)
    if config.calibration > available:
        raise RecipeError(
            f"--calibration {config.calibration} is more than all {available:,} windows"
        )
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes(s, 1))
    window = np.asarray(s.program.data.images[:1])
    for sparsity in config.sparsity:
        try:
            jax.eval_shape(lambda p: pruned(s, p, "magnitude", sparsity, window), one)  # noqa: B023
        except ValueError as error:
            raise RecipeError(f"--sparsity {sparsity}: {' '.join(str(error).split())}") from error


# --- the phases -----------------------------------------------------------------------------------


Cell = tuple[str, str]  # a method and a sparsity


class Pruned(NamedTuple):
    """The models after one method, each as often as there are calibrations."""

    params: Any  # (models * times, ...)
    seconds: jax.Array  # (models * times,)


def one_phase(
    config: Config,
    s: Study,
    log: Journal,
    repairs: Mapping[str, Repair],
    cell: Cell | None,
    dense: Any,
) -> tuple[Any, dict[str, Any]]:
    """First the trained models, then each method at each sparsity; what it gives is a record."""
    if cell is None:
        dense = loaded(config) if config.trained else language.trained(config, s, log).params
        return dense, told(config, s, dense, dense) | {"method": "dense", "sparsity": "0"}
    times, count = config.calibrations, models_of(config) * config.calibrations

    def prune(so_far: Pruned, start: int, at: Any) -> Pruned:
        for i in range(start, count):
            one, batches = lanes.lane_of(dense, i // times), windows(config, s, i % times)
            began = time.perf_counter()
            small = jax.block_until_ready(pruned(s, one, *cell, batches))
            seconds = time.perf_counter() - began
            put = lambda stack, x, i=i: stack.at[i].set(x)
            so_far = Pruned(
                jax.tree.map(put, so_far.params, small), so_far.seconds.at[i].set(seconds)
            )
            at(i + 1, so_far)
        return so_far

    method, sparsity = cell
    empty = jax.tree.map(jnp.zeros_like, Pruned(lanes.repeat(dense, times), jnp.zeros(count)))
    done = log.once(f"{method} {sparsity}".replace(":", " of "), count, empty, prune, method)
    save(config, cell, jax.tree.map(lambda x: x[::times], done.params))
    record = told(config, s, done.params, lanes.repeat(dense, times))
    record |= {"method": method, "sparsity": sparsity, "pruning_seconds": done.seconds.tolist()}
    record["repairs"] = {
        name: after_repair(config, s, log, f"{name} {method} {sparsity}", how, done.params)
        for name, how in repairs.items()
    }
    return dense, record | {"seconds": log.seconds()}


def after_repair(
    config: Config, s: Study, log: Journal, name: str, how: Repair, params: Any
) -> dict[str, Any]:
    """What is measured of pruned models after a repair: pruned weights stay zero."""
    lane = lanes.Lane(lanes.seed_keys(config.seed, len(jax.tree.leaves(params)[0])))
    end = repaired(log, name.replace(":", " of "), how, params, lane, config.repair_steps)
    sample = language.written(config, s, lanes.lane_of(end, 0), 1)[0]
    return {"test_bits": s.bits["test"](end).tolist(), "sample": sample}


def repairs_of(config: Config, s: Study) -> dict[str, Repair]:
    """How each repair trains."""
    optimizer = language.optimizer(config.repair_rate, config.repair_steps)
    loss, key = language.next_token(s.program.module), jax.random.key(config.seed)
    shared = s.program, optimizer, loss, jax.random.fold_in(key, ADAPT), config.adapter_rank
    return {name: repair(name, *shared) for name in config.repair}


def loaded(config: Config) -> Any:
    """The models of all runs, one stack."""
    paths = (Path(path) / folder.MODEL for path in config.trained)
    return lanes.join(*(checkpoints.load_model(path)[0] for path in paths))


def save(config: Config, cell: Cell, params: Any) -> None:
    """The models after a method with its first windows, a stack; masks say what is not zero."""
    masks = jax.tree.map(lambda w: w != 0, jp.kernels(params))
    name = "-".join(cell).replace(":", "of")
    checkpoints.save_model(config.out / folder.MODEL / name, params, {}, masks)


def told(config: Config, s: Study, params: Any, dense: Any) -> dict[str, Any]:
    """What is measured of a stack of models: bits, weights kept, errors by layer, a sample."""
    kept = jax.tree.map(lambda w: w != 0, jax.vmap(jp.kernels)(params))
    counts = sum(x.reshape(len(x), -1).sum(1) for x in jax.tree.leaves(kept))
    return {
        "test_bits": s.bits["test"](params).tolist(),
        "kept_weights": np.asarray(counts).tolist(),
        "errors": {name: x.tolist() for name, x in errors(s, params, dense).items()},
        "sample": language.written(config, s, lanes.lane_of(params, 0), 1)[0],
    }


def errors(s: Study, params: Any, dense: Any) -> dict[str, np.ndarray]:
    """By layer the error of its output, relative to the output of the dense model, (models,).

    The squared error over the squared output, on validation text. It has the errors of all layers
    before it.
    """
    tokens = jnp.asarray(s.validation.images[:WINDOWS])

    @jax.jit
    @jax.vmap
    def relative(params: Any, dense: Any) -> dict[str, jax.Array]:
        a, b = (outputs(s.program.module, p, tokens) for p in (params, dense))
        return {name: jnp.sum((a[name] - b[name]) ** 2) / jnp.sum(b[name] ** 2) for name in b}

    found = relative(params, dense)
    block = lambda name: int(name.split("/")[0].rpartition("_")[2])
    by_place = lambda name: (block(name), LAYERS.index(name.split("/")[-1]))
    return {name: np.asarray(found[name]) for name in sorted(found, key=by_place)}


def outputs(module: nn.Module, params: Any, tokens: jax.Array) -> dict[str, jax.Array]:
    """What each layer with a kernel gives, by its path."""
    layers = lambda module, method: isinstance(module, (nn.Dense, nn.DenseGeneral))
    _, seen = module.apply({"params": params}, tokens, capture_intermediates=layers)
    leaves = jax.tree_util.tree_leaves_with_path(seen["intermediates"])
    return {"/".join(str(part.key) for part in path[:-2]): x for path, x in leaves}


main = cli.command(Config, one_shot)

if __name__ == "__main__":
    main()
