"""Pruning at initialization, methods side by side: `python -m recipes.prune_at_init --help`.

Each method makes its masks of the first weights, before any training, at one sparsity or several;
then all train alike, from the same weights and on the same batches. With --controls each method has
two controls: its masks shuffled within layers, and other weights under its masks. Writes a folder
that reproduces itself. Test data choose nothing: every number is that of the last step.

References: Lee et al., 2019 (SNIP); Wang et al., 2020 (GraSP); Tanaka et al., 2020 (SynFlow);
de Jorge et al., 2021 (FORCE, iterative SNIP); Liu et al., 2022 (random, ERK); Frankle et al., 2021,
Pruning Neural Networks at Initialization: Why Are We Missing the Mark? (the controls).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import at_init, balanced, cli, lanes, models, plots, remaining, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset, Split

PROGRAM = "python -m recipes.prune_at_init"
ACCURACY, CONTROLS = "plots/weights_left.png", "plots/controls.png"
PER_CLASS = 10  # examples that masks are made from, but for `at_init.PER_CLASS`
SHUFFLED, REDRAWN = "shuffled", "redrawn"


@dataclass(frozen=True)
class Config(settings.Settings):
    """Pruning at initialization, methods side by side, several seeds in one program."""

    out: Path = Path("runs/prune_at_init")
    """The folder to write to."""
    seeds: int = 5
    """How many seeds to train at once."""
    width: float = 1.0
    """What multiplies the sizes of the hidden layers."""
    method: Annotated[tuple[str, ...], cli.several(at_init.METHODS)] = ("snip", "synflow", "random")
    """One method, or several side by side."""
    sparsity: Annotated[tuple[float, ...], cli.listed("FLOAT")] = (0.98,)
    """The fraction of weights that are pruned, in [0, 1), or several."""
    controls: bool = False
    """Beside each method its masks shuffled within layers, and redrawn weights under its masks."""
    rounds: Annotated[int | None, cli.default_is("INT", "synflow 100; force, iter_snip 60")] = None
    """synflow, force, iter_snip: in how many rounds to prune."""
    per_class: Annotated[
        int | None, cli.default_is("INT", "grasp 25, as in its authors' code; the others 10")
    ] = None
    """snip, grasp, force, iter_snip: training examples of each class that a seed's masks see."""


class Kind(NamedTuple):
    """What an arm is."""

    method: str
    sparsity: float
    control: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    cli.main(Config, prune_at_init, PROGRAM, argv)


def prune_at_init(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    check(config)
    with warnings.catch_warnings():  # of empty layers: the table tells of them
        warnings.filterwarnings("ignore", ".*keeps none of its weights.*", UserWarning)
        outcome = study.train(config, PROGRAM, partial(arms, config))
    summary = {
        "recipe": "prune_at_init",
        "studies": "test accuracy of networks pruned at initialization, beside dense training",
        "methods": list(config.method),
        "sparsities": list(config.sparsity),
        "controls": config.controls,
        **study.summarise(config, outcome),
    }
    add_collapse(config, outcome, summary["arms"])
    figures = pictures(config, outcome, summary["arms"])
    told = [name(kind, config) for kind in highest(config)]
    study.publish(config, outcome, summary, "Pruning at initialization", PROGRAM, figures, told)
    return summary


def check(config: Config) -> None:
    """Raises `RecipeError` for a value that makes no sense, before anything is read or written."""
    settings.check(config)
    cli.some_of("--method", config.method, at_init.METHODS)
    cli.in_range("--width", config.width, 0, 100, "(]")
    cli.some_of("--sparsity", config.sparsity)
    for sparsity in config.sparsity:
        cli.in_range("--sparsity", sparsity, 0, 1, "[)")
    cli.at_least("--rounds", 1 if config.rounds is None else config.rounds, 1)
    cli.at_least("--per-class", 1 if config.per_class is None else config.per_class, 1)


def kinds(config: Config) -> list[Kind]:
    """All arms but the dense one."""
    controls = ("", SHUFFLED, REDRAWN) if config.controls else ("",)
    return [Kind(m, s, c) for m in config.method for s in config.sparsity for c in controls]


def highest(config: Config) -> list[Kind]:
    """The methods at the highest sparsity, without controls."""
    return [Kind(method, max(config.sparsity)) for method in config.method]


def name(kind: Kind, config: Config) -> str:
    """That of an arm: it tells the sparsity if there are several."""
    at = [f"{100 * kind.sparsity:.10g}%"] if len(config.sparsity) > 1 else []
    return " ".join([kind.method, *at, *filter(None, [kind.control])])


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """The dense arm, and one for each kind; these train alike, in one compiled program."""
    module = models.model(config.model, dataset.classes, config.norm, config.width)
    dense = settings.optimizer(config, steps)
    sparse = jp.sparsify(dense, jp.fixed(lanes.keep_all))  # it begins under masks of its own
    data = jax.device_put(dataset.train)
    labels, classes = dataset.train.labels, dataset.classes
    make = {}
    for method in config.method:
        of_each = config.per_class or at_init.PER_CLASS.get(method, PER_CLASS)
        rows = partial(balanced.balanced_rows, labels=labels, classes=classes, of_each=of_each)
        make[method] = maker(at_init.masks_of(method, module, rows, config.rounds))
    draw = redraw(module, dataset.train.images)

    def start(kind: Kind, keys: jax.Array, params: Any) -> tuple[Any, Any]:
        masks = make[kind.method](keys, params, jnp.float32(kind.sparsity), data)
        if kind.control == SHUFFLED:
            masks = _shuffled(keys, masks)
        if kind.control == REDRAWN:
            params = draw(keys, masks)
        return params, masks

    return {"dense": Arm(module, dense)} | {
        name(kind, config): Arm(module, sparse, Weights.SPARSE, partial(start, kind))
        for kind in kinds(config)
    }


def maker(masks: at_init.MasksOf) -> Callable[[jax.Array, Any, jax.Array, Split], Any]:
    """The masks of a stack of seeds; one program serves all sparsities."""
    return jax.jit(jax.vmap(masks, in_axes=(0, 0, None, None)))


def redraw(module: nn.Module, images: np.ndarray) -> Callable[[jax.Array, Any], Any]:
    """New weights for each seed, under its masks."""
    init = lambda key: module.init(key, jnp.asarray(images[:1]))["params"]
    return jax.jit(jax.vmap(lambda key, m: jp.reinitialise(jax.random.fold_in(key, 2), init, m)))


@jax.jit
@jax.vmap
def _shuffled(key: jax.Array, masks: Any) -> Any:
    return jp.shuffle(jax.random.fold_in(key, 1), masks)


_collapsed = jax.jit(jax.vmap(jp.collapsed))


# --- what came of it -----------------------------------------------------------------------------


def add_collapse(config: Config, outcome: study.Outcome, numbers: dict[str, Any]) -> None:
    """Adds to each arm in which seeds a layer is empty, and how many weights can act."""
    module, images = outcome.arms["dense"].module, outcome.dataset.train.images
    forward = at_init.flow(module, images.shape[1:])
    for kind in kinds(config):
        own, state = numbers[name(kind, config)], outcome.states[name(kind, config)]
        masks = jp.get_masks(state.opt_state)
        empty = _collapsed(masks)
        own["collapsed"] = np.any(list(empty.values()), axis=0).tolist()
        own["on_paths"] = at_init.weights_on_paths(forward, state.params, masks).tolist()


def pictures(
    config: Config, outcome: study.Outcome, numbers: dict[str, Any]
) -> dict[str, study.Picture]:
    """The figures, by their path below the folder."""
    shown = ["dense", *(name(kind, config) for kind in highest(config))]
    curves = study.pictures(outcome._replace(arms={arm: outcome.arms[arm] for arm in shown}))
    drawn = plots.looks(["dense", *config.method])
    dense = np.asarray(numbers["dense"]["test_accuracy"]["per_seed"])

    def line(method: str, control: str = "") -> remaining.Line:
        own = [numbers[name(Kind(method, s, control), config)] for s in config.sparsity]
        return remaining.Line(
            left=[1 - s for s in config.sparsity],
            accuracy=np.array([n["test_accuracy"]["per_seed"] for n in own]),
            collapsed=np.array([n["collapsed"] for n in own]),
        )

    made = {
        ACCURACY: study.Picture(
            remaining.accuracy({m: line(m) for m in config.method}, dense, drawn),
            "Test accuracy of the last step against weights left: mean over seeds; bands from the "
            "worst seed to the best. A cross: a layer kept no weight, in one seed at least.",
        ),
        study.LAYERS: study.Picture(
            remaining.layers(layer_lines(config, outcome), drawn),
            "Weights kept in each layer, counted, against weights left in all: mean over seeds; "
            "bands from the lowest to the highest. A cross: the layer kept none, in one seed at "
            "least.",
        ),
        study.CURVES: study.Picture(
            curves[study.CURVES].png,
            f"At sparsity {max(config.sparsity):g}. {curves[study.CURVES].caption}",
        ),
    }
    if config.controls:
        made[CONTROLS] = study.Picture(
            remaining.controls(
                {
                    m: {c or "own masks": line(m, c) for c in ("", SHUFFLED, REDRAWN)}
                    for m in config.method
                },
                dense,
                drawn,
            ),
            "Each method, its masks shuffled within layers, and redrawn weights under its masks: "
            "test accuracy of the last step against weights left, as above.",
        )
    return made


def layer_lines(config: Config, outcome: study.Outcome) -> dict[str, dict[str, plots.Curve]]:
    """Layer -> method -> weights left in all, and weights kept there (sparsities, seeds)."""
    lines: dict[str, dict[str, plots.Curve]] = {}
    for method in config.method:
        stacks = [
            jp.get_masks(outcome.states[name(Kind(method, s), config)].opt_state)
            for s in config.sparsity
        ]
        kept = [remaining.kept_by_layer(stack) for stack in stacks]
        for path in kept[0]:
            counts = np.array([k[path] for k in kept])
            lines.setdefault(path, {})[method] = ([1 - s for s in config.sparsity], counts)
    return lines


if __name__ == "__main__":
    main()
