"""The barrier matrix of several seeds, beside the forward passes that it cannot do without."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import numpy as np

import jaxprune as jp
from recipes.benchmarks.section import Figure, Plan, Section, Target, comparison
from recipes.benchmarks.training import CLASSES, MNIST
from recipes.common import measures, models
from recipes.common.data import Split
from recipes.common.terminal import counted
from recipes.common.timing import Measured, interleaved

POINTS = 11
AT_MOST = 3  # rounds: a matrix takes ten seconds
MATRIX, FIRST = "matrix", "matrix, and compiled"


def barriers(plan: Plan) -> list[Section]:
    """Error and loss barriers between all pairs of LeNet-300-100, on images of MNIST's shape."""
    pairs = plan.seeds * (plan.seeds - 1) // 2
    floor = f"{pairs} x {POINTS} passes"
    control = f"{floor} (A/A)"
    measured = _measure(plan, pairs * POINTS, floor, control)
    section = comparison(
        name="barriers",
        headline=f"LeNet-300-100, {plan.seeds} seeds: barrier matrix on {plan.examples:,} images",
        measured=measured,
        baselines=[floor],
        control=control,
        targets={},
    )
    minute = Target(60)
    seconds = [
        Figure(f"barriers: seconds of the {name}", float(np.median(measured[name].seconds)), minute)
        for name in (MATRIX, FIRST)
    ]
    return [section._replace(figures=seconds)]


def _measure(plan: Plan, passes: int, floor: str, control: str) -> dict[str, Measured]:
    module = models.model("lenet", CLASSES)
    rng = np.random.default_rng(plan.seed)
    images = rng.standard_normal((plan.examples, *MNIST), np.float32)
    labels = rng.integers(0, CLASSES, plan.examples, np.int32)
    loss = measures.measure_on(module, Split(images, labels))
    barrier = partial(jp.barrier, loss, points=POINTS)
    keys = jax.random.split(jax.random.key(plan.seed), plan.seeds)
    stack = jax.vmap(lambda key: module.init(key, images[:1]))(keys)
    one: Any = jax.block_until_ready(jax.tree.map(lambda x: x[0], stack))
    forward = jax.jit(loss)

    def matrix() -> None:
        jax.block_until_ready(jp.pairwise(barrier, stack, diagonal=0.0))

    def alone() -> None:
        jax.block_until_ready([forward(one) for _ in range(passes)])

    runs = {floor: alone, control: alone, MATRIX: matrix}
    rounds = min(plan.repeats, AT_MOST)
    with counted("barriers", 1 + rounds * len(runs)) as done:
        began = time.perf_counter()
        matrix()
        first = time.perf_counter() - began
        done(FIRST)
        seconds = interleaved(runs, rounds, plan.seed, done=done) | {FIRST: [first]}
    return {name: Measured(np.asarray(own)) for name, own in seconds.items()}
