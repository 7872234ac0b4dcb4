"""Training steps of several seeds in one program, beside one program for each seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax import lax

import jaxprune as jp
from recipes.benchmarks.rounds import timed
from recipes.benchmarks.section import Figure, Plan, Section, Target, comparison
from recipes.benchmarks.training import CLASSES, EVERY, MNIST, gradual, train_step
from recipes.common import arms, lanes, models
from recipes.common.timing import Cell, ratio

CONV_ROUNDS, VMAP_ROUNDS, MAP_ROUNDS = 8, 3, 1  # at most: a step takes up to ten seconds
SCANNED = 2  # steps of a loop: XLA unrolls a loop of one
OverSeeds = Callable[[Callable[..., Any]], Callable[..., Any]]  # such as jax.vmap


def many_seeds(plan: Plan) -> list[Section]:
    """Training steps of two networks for several seeds: in one program, and each by itself."""
    return [_of_lenet(plan), _of_conv(plan)]


def _of_lenet(plan: Plan) -> Section:
    module, n = models.model("lenet", CLASSES), plan.seeds
    adam, sparse = optax.adam(1e-3), gradual(jp.global_threshold)
    singly, together = f"dense, {n} runs", "dense, 1 program"
    sparse_singly, sparse_together = f"sparse, {n} runs", "sparse, 1 program"
    cells = [
        _cell(singly, module, adam, plan, period=EVERY),
        _cell(f"{singly} (A/A)", module, adam, plan, period=EVERY),
        _cell(together, module, adam, plan, jax.vmap, period=EVERY),
        _cell(sparse_singly, module, sparse, plan, period=EVERY),
        _cell(sparse_together, module, sparse, plan, jax.vmap, period=EVERY),
    ]
    measured = timed(plan, "seeds", cells)
    section = comparison(
        name="seeds",
        headline=f"LeNet-300-100, {n} seeds: training step, masks updated at every {EVERY}th",
        measured=measured,
        baselines=[singly, sparse_singly],
        control=f"{singly} (A/A)",
        targets={together: Target(1)},
    )
    own = ratio(measured, sparse_together, sparse_singly).median
    figure = Figure(f"seeds: {sparse_together} / {sparse_singly}", own, Target(1))
    return section._replace(figures=[*section.figures, figure])


def _of_conv(plan: Plan) -> Section:
    """The drop-in convolution, and beside it XLA's own: alone, under vmap and in a loop."""
    module, xla = conv_nets()
    n, adam = plan.seeds, optax.adam(1e-3)
    singly, together = f"{n} runs", "1 program"
    xla_singly, xla_together = f"{singly}, XLA's", f"{together}, XLA's"
    scanned = f"{together}, scan"
    cells = [  # samples of equal length: a step of all seeds, or so many of one
        _cell(singly, module, adam, plan, period=n),
        _cell(f"{singly} (A/A)", module, adam, plan, period=n),
        _cell(together, module, adam, plan, jax.vmap),
        _cell(xla_singly, xla, adam, plan, period=n),
        _cell(f"{xla_together}, vmap", xla, adam, plan, jax.vmap, at_most=VMAP_ROUNDS),
        _cell(f"{xla_together}, lax.map", xla, adam, plan, _in_turns, at_most=MAP_ROUNDS),
        _cell(scanned, module, adam, plan, _in_a_scan, times=1 / SCANNED),
        _cell(
            f"{xla_together}, vmap, scan",
            xla,
            adam,
            plan,
            _in_a_scan,
            at_most=MAP_ROUNDS,
            times=1 / SCANNED,
        ),
    ]
    return comparison(
        name="seeds_conv",
        headline=f"Conv net, {n} seeds: training step, and with XLA's convolution",
        measured=timed(plan, "seeds conv", cells, CONV_ROUNDS),
        baselines=[singly, xla_singly, scanned],
        control=f"{singly} (A/A)",
        targets={together: Target(1.2)},
    )


def conv_nets() -> tuple[nn.Module, nn.Module]:
    """The convolutional network of the recipes, and the same with XLA's convolution."""
    ours = models.model("conv", CLASSES)
    xlas = partial(models.Conv, conv_general_dilated=lax.conv_general_dilated)
    return ours, ours.clone(conv=xlas)


def _in_turns(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: lax.map(lambda own: step(*own), args)


def _in_a_scan(step: Callable[..., Any]) -> Callable[..., Any]:
    """Steps of all seeds, one after the other in a loop."""

    def steps(state: Any, *args: Any) -> Any:
        return lax.scan(lambda own, _: (jax.vmap(step)(own, *args), None), state, length=SCANNED)[0]

    return steps


def _cell(
    name: str,
    module: nn.Module,
    tx: optax.GradientTransformation,
    plan: Plan,
    over_seeds: OverSeeds | None = None,
    period: int = 1,
    at_most: int | None = None,
    times: float = 1,
) -> Cell:
    """A step of all seeds in one program; or of one, counted as often as there are seeds."""
    seeds = 1 if over_seeds is None else plan.seeds
    shape = plan.batch_size, *MNIST
    keys = jax.random.split(jax.random.key(plan.seed), seeds)
    images = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    labels = jax.vmap(lambda key: jax.random.randint(key, shape[:1], 0, CLASSES))(keys)
    step = train_step(module, tx)

    def state() -> Any:
        keys = lanes.seed_keys(plan.seed, seeds)
        stack = arms.begin(arms.Arm(module, tx), keys, np.zeros((1, *MNIST)))
        return jax.tree.map(lambda x: x[0], stack) if over_seeds is None else stack

    if over_seeds is None:
        return Cell(name, step, state, (images[0], labels[0]), period=period, times=plan.seeds)
    return Cell(
        name, over_seeds(step), state, (images, labels), at_most=at_most, period=period, times=times
    )
