"""Sparse training that is faster: blocks beside masks: `python -m recipes.block_training --help`.

Trains the same network dense, under masks of single weights, and in blocks of several sizes, from
the same weights and on the same batches. In blocks the forward pass, the backward pass and the
optimizer cost what is kept (`jp.fast.block_training`). Gradual pruning begins dense, and its arrays
become smaller in stages. The picture is accuracy over seconds. Writes a folder that reproduces
itself.

References: Narang et al., 2017, Block-Sparse Recurrent Neural Networks; Evci et al., 2020, Rigging
the Lottery: Making All Tickets Winners; Zhu and Gupta, 2017, To prune, or not to prune.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import cli, flags, models, report, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset
from recipes.common.figures import seconds, style
from recipes.common.in_blocks import InBlocks, Shapes
from recipes.common.report import Picture

SECONDS = "plots/seconds.png"
METHODS = ("static", "rigl", "gmp")
SIZE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Sparse training in blocks beside dense training and masks of single weights."""

    out: Path = Path("runs/block_training")
    sparsity: flags.Fraction = 0.9
    """The fraction of the weights of each hidden layer that are pruned; whole blocks are kept."""
    blocks: Annotated[tuple[str, ...], flags.DISTINCT] = ("16x16", "32x32", "64x64", "1x64")
    """Sizes of blocks, inputs x outputs. 1x64: single inputs that 64 outputs share."""
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = METHODS
    """Random masks that stay (static), or that move by magnitude and gradient (rigl); or gradual
    magnitude pruning (gmp), from dense to the sparsity."""
    every: flags.Count = 50
    """rigl, gmp: steps between updates of the masks."""
    fraction: Annotated[float, flags.within("[0, 1]")] = 0.5
    """rigl: the fraction of kept blocks that the first update rewires; a cosine takes it to 0."""
    end: Annotated[float, flags.within("(0, 1]")] = 0.75
    """rigl, gmp: when the masks move for the last time, as a fraction of the steps."""
    stages: flags.Count = 5
    """gmp: how often the arrays become smaller; each time a step is compiled again."""
    control: bool = False
    """Train the dense network twice (A/A): the times of equal arms say how noisy the clock is."""
    hidden: Annotated[tuple[int, ...], flags.at_least(1)] = (1024, 512, 512)
    """The sizes of the hidden layers."""
    model: Annotated[str, flags.HIDDEN] = "mlp"
    norm: Annotated[str, flags.HIDDEN] = "group"
    width: Annotated[float, flags.HIDDEN] = 1.0
    seeds: settings.Seeds = 1
    """Seeds that train at once, in one program."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        for size in self.blocks:
            if not SIZE.fullmatch(size):
                yield f"--blocks are inputs x outputs, such as 32x32, got '{size}'"


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training, masks of single weights, and blocks. The last layer stays dense."""
    module = models.MLP(config.hidden, dataset.classes)
    adam = settings.optimizer(config, steps)
    hidden = jp.matching("*/kernel", exclude=f"Dense_{len(config.hidden)}/*")
    made = {"dense": Arm(module, adam)}
    if config.control:
        made["dense again"] = Arm(module, adam)
    for method in config.method:
        masks = transforms(config, method, steps)

        def masked(key: jax.Array, masks: Any = masks) -> optax.GradientTransformation:
            return jp.sparsify(adam, masks(key, hidden, config.sparsity))

        made[f"{method} weights"] = Arm(module, masked, Weights.SPARSE)
        for size in config.blocks:
            h, w = map(int, SIZE.fullmatch(size).groups())  # type: ignore[union-attr]
            blocks = in_blocks(config, method, steps, h, w, hidden)
            made[f"{method} {size}"] = Arm(module, adam, Weights.SPARSE, blocks=blocks)
    return made


def transforms(config: Config, method: str, steps: int) -> Callable[..., jp.MaskTransform]:
    """(key, prunable, sparsity) -> masks of the method; of single weights, and of blocks too."""
    if method == "static":
        return lambda key, prunable, sparsity: jp.static(key, sparsity, one_left, prunable)
    last = max(round(config.end * steps), 1)
    if method == "gmp":
        ramp = cubic(config, steps)

        def gmp(key: jax.Array, prunable: Any, sparsity: Any) -> jp.MaskTransform:
            masks = jp.prune(jp.magnitude, one_left, ramp, prunable=prunable)
            return jp.every(config.every, masks, stop=last)

        return gmp
    fraction = optax.cosine_decay_schedule(config.fraction, last)

    def rigl(key: jax.Array, prunable: Any, sparsity: Any) -> jp.MaskTransform:
        masks = jp.rigl(key, sparsity, fraction, one_left, prunable)
        return jp.every(config.every, masks, stop=last)

    return rigl


def one_left(scores: Any, sparsity: Any) -> Any:
    """The weights to prune in each leaf: uniform, but one stays. Leaves may be rows of blocks."""
    return jax.tree.map(lambda x: pruned(x.size, sparsity), scores)


def pruned(n: int, sparsity: Any) -> Any:
    """How many of n are pruned; one stays. A traced sparsity gives a traced count."""
    if isinstance(sparsity, jax.Array):
        return jnp.minimum(jnp.round(sparsity * n).astype(jnp.int32), n - 1)
    return min(round(sparsity * n), n - 1)


def in_blocks(config: Config, method: str, steps: int, h: int, w: int, hidden: Any) -> InBlocks:
    """Blocks of h x w by a method: as many for each block of outputs."""
    masks = transforms(config, method, steps)

    def slots(shapes: Shapes, step: int) -> dict[str, int]:
        sparsity = config.sparsity if method != "gmp" else least(config, steps, step)
        kept = lambda n: n - pruned(n, sparsity)
        return {name: kept(-(-shape[0] // h)) for name, shape in shapes.items()}

    def of(key: jax.Array) -> jp.MaskTransform:
        rows = masks(key, jp.fast.by_outputs, config.sparsity)
        return jp.fast.in_blocks(h, w, rows, hidden)

    return InBlocks(of, slots)


# --- gradual pruning ------------------------------------------------------------------------------


def cubic(config: Config, steps: int) -> optax.Schedule:
    """The sparsity over the steps of Zhu and Gupta, from 0 to that of the run."""
    last = max(round(config.end * steps), 1)
    return optax.polynomial_schedule(0.0, config.sparsity, 3, last)


def least(config: Config, steps: int, step: int) -> float:
    """The sparsity that the arrays of gradual pruning have room for after so many steps.

    The density falls in stages, each as many times smaller; the arrays wait for the next one. The
    number is a little too low, because the masks compute theirs in float32.
    """
    density = lambda stage: (1 - config.sparsity) ** (stage / config.stages)
    if step > max(round(config.end * steps), 1):  # the last update reads the end of the schedule
        passed = config.stages
    else:
        updated = max(step - 1, 0) // config.every * config.every
        with jax.ensure_compile_time_eval():
            now = 1 - float(cubic(config, steps)(updated))
        passed = max(stage for stage in range(config.stages) if now <= density(stage))
    return max(1 - density(passed) - 1e-4, 0.0)


# --- the command ----------------------------------------------------------------------------------


def block_training(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    numbers = study.numbers(outcome)
    dense = numbers["arms"]["dense"]["training_seconds"]
    for arm in numbers["arms"].values():
        arm["times_as_fast"] = dense / arm["training_seconds"]
    summary = report.summary(
        config,
        "accuracy and seconds of sparse training in blocks, beside dense training",
        **numbers,
    )
    pictures = {SECONDS: over_seconds(outcome), **study.pictures(outcome)}
    title = "Sparse training in blocks"
    return study.publish(config, outcome, summary, title, pictures, told=())


def over_seconds(outcome: study.Outcome) -> Picture:
    """The picture of accuracy over time."""
    courses = {}
    for name in outcome.arms:
        tested = [line[name] for line in outcome.history if "test_accuracy" in line[name]]
        clock, values = zip(*((x["seconds"], x["test_accuracy"]) for x in tested), strict=True)
        courses[name] = seconds.Course(np.asarray(clock), np.asarray(values))
    drawn = style.looks(courses)
    drawn |= {n: drawn[n]._replace(marker="x") for n in courses if n.endswith(" weights")}
    return Picture(
        seconds.accuracy(courses, drawn),
        "Test accuracy over the seconds that an arm has trained, tests and compilation left out; "
        "the large marker is where its training ends. All arms train in turns in one process.",
    )


main = cli.command(Config, block_training)

if __name__ == "__main__":
    main()
