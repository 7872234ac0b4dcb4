"""Calibration beside what it can't do without: forward passes, a Cholesky factor, and products.

CPU time of the process on a CPU; one core is the fairest:
`taskset -c 0 python -m recipes.bench --only calibration`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxprune as jp
from jaxprune.calibration.sparsegpt import factor
from recipes.benchmarks.rounds import cpu_clock, timed
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.common.models import Decoder
from recipes.common.models.decoder import SIZES
from recipes.common.timing import Cell

LEAF = 1024, 4096  # inputs, outputs
ROWS, DAMPING = 2048, 0.01
VOCABULARY, BATCH, TOKENS = 65, 8, 128
FORWARD, FACTOR, AGAIN = "forward pass", "Cholesky and products", "{} (A/A)"


def calibrating(plan: Plan) -> list[Section]:
    """The statistics of a decoder, and SparseGPT of one leaf."""
    return [_statistics(plan), _sparsegpt(plan)]


def _statistics(plan: Plan) -> Section:
    """A batch of a decoder: the logits alone, and what each leaf is multiplied with."""
    size = "small" if _is_large(plan) else "tiny"
    module = Decoder(VOCABULARY, SIZES[size])
    keys = jax.random.split(jax.random.key(plan.seed))
    tokens = jax.random.randint(keys[0], (BATCH, TOKENS), 0, VOCABULARY)
    params = module.init(keys[1], tokens)["params"]
    fn = lambda params, tokens: module.apply({"params": params}, tokens)

    def gathered(moment: bool) -> Any:
        return lambda params, tokens: jp.calibration.statistics(fn, params, [tokens], moment)

    programs = {
        FORWARD: fn,
        AGAIN.format(FORWARD): fn,
        "statistics": gathered(False),
        "statistics with second moments": gathered(True),
    }
    cells = [_cell(name, of, params, tokens) for name, of in programs.items()]
    weights = sum(x.size for x in jax.tree.leaves(params))
    return comparison(
        name="calibration statistics",
        headline=f"A batch of a decoder of {weights:,} weights: statistics / forward pass",
        measured=timed(plan, "statistics", cells, clock=cpu_clock()),
        baselines=[FORWARD],
        control=AGAIN.format(FORWARD),
        targets={"statistics": Target(1.3)},
    )


def _sparsegpt(plan: Plan) -> Section:
    """A matrix: X'X, its factor and one product with the weights; and the method."""
    inputs, outputs = LEAF if _is_large(plan) else (64, 128)
    keys = jax.random.split(jax.random.key(plan.seed))
    weight = jax.random.normal(keys[0], (inputs, outputs))
    x = jax.random.normal(keys[1], (ROWS, inputs))
    of = lambda x: jp.calibration.Inputs((x,))

    def least(weight: jax.Array, x: jax.Array) -> jax.Array:
        upper = factor(of(x), DAMPING)[0]
        return jnp.matmul(upper.T, weight, precision=lax.Precision.HIGHEST)

    def pruned(sparsity: Any) -> Any:
        method = jp.calibration.sparsegpt(sparsity, damping=DAMPING)
        return lambda weight, x: method(weight, of(x))

    programs = {
        FACTOR: least,
        AGAIN.format(FACTOR): least,
        "SparseGPT, 50 %": pruned(0.5),
        "SparseGPT, 2:4": pruned((2, 4)),
    }
    cells = [_cell(name, of, weight, x) for name, of in programs.items()]
    return comparison(
        name="calibration sparsegpt",
        headline=f"SparseGPT of {inputs} x {outputs} / its Cholesky factor and products",
        measured=timed(plan, "SparseGPT", cells, clock=cpu_clock()),
        baselines=[FACTOR],
        control=AGAIN.format(FACTOR),
        targets={"SparseGPT, 50 %": Target(2.0), "SparseGPT, 2:4": Target(2.0)},
    )


def _cell(name: str, fn: Any, *inputs: Any) -> Cell:
    """A function as a step that overwrites its last result."""
    shapes = jax.eval_shape(fn, *inputs)
    state = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return Cell(name, lambda _, *inputs: fn(*inputs), state, inputs)


def _is_large(plan: Plan) -> bool:
    return plan.weights >= LEAF[0] * LEAF[1]
