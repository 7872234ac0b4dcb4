"""Exact selection beside sorts, and beside reading and writing the scores once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import jaxprune as jp
from recipes.benchmarks.rounds import timed
from recipes.benchmarks.section import Figure, Plan, Section, Target, comparison
from recipes.benchmarks.steps import SPARSITY, describe, kernels
from recipes.common.report import tree_bytes
from recipes.common.timing import Cell, ratio

# one read and one write of the scores: to an array that is there, to a new one, to themselves
TWICE, CONTROL, NEW, IN_PLACE = "2x", "2x (A/A)", "2x, new array", "-x, in place"
SELECT, ONE_LEAF = "select, global", "unstructured, 1 leaf"
SORTS = ("argsort", "sort", "top_k")
SORT_ROUNDS = 2  # a sort of 10M takes seconds
ROUGHLY_ONCE = Target(6, aim=3)


def selection(plan: Plan) -> list[Section]:
    """`select` and `unstructured`, `argsort`, `sort` and `top_k` of the same scores."""
    params, _ = kernels(plan.seed, plan.weights, plan.leaves)
    cells = _cells(params)
    measured = timed(plan, "selection", cells)
    headline = f"Selection of {1 - SPARSITY:.0%} of {describe(params)}"
    section = comparison(
        name="selection",
        headline=headline,
        measured=measured,
        baselines=[TWICE, NEW, IN_PLACE],
        control=CONTROL,
        targets={SELECT: ROUGHLY_ONCE, ONE_LEAF: ROUGHLY_ONCE},
        param_bytes=tree_bytes(params),
    )
    to_new = [
        Figure(f"selection: {own} / {NEW}", ratio(measured, own, NEW).median, ROUGHLY_ONCE)
        for own in (SELECT, ONE_LEAF)
    ]
    much_faster = [
        Figure(
            f"selection: argsort / {own}",
            ratio(measured, "argsort", own).median,
            Target(50, at_least=True),
        )
        for own in (SELECT, ONE_LEAF)
    ]
    return [section._replace(figures=[*section.figures, *to_new, *much_faster])]


def _cells(params: Any) -> list[Cell]:
    scores = jnp.concatenate([jnp.abs(leaf).ravel() for leaf in jax.tree.leaves(params)])
    kept = scores.size - round(SPARSITY * scores.size)

    def select(params: Any) -> Any:
        return jp.select(jp.magnitude(params), jp.global_threshold, SPARSITY)

    def twice(x: jax.Array) -> jax.Array:
        return 2 * x

    functions: dict[str, tuple[Callable, Any]] = {
        SELECT: (select, params),
        ONE_LEAF: (lambda x: jp.unstructured(x, SPARSITY), scores),
        "argsort": (jnp.argsort, scores),
        "sort": (jnp.sort, scores),
        "top_k": (lambda x: tuple(lax.top_k(x, kept)), scores),
    }
    return [
        _cell(TWICE, twice, scores),
        _cell(CONTROL, twice, scores),
        replace(_cell(NEW, twice, scores), donate=False),
        Cell(IN_PLACE, jnp.negative, lambda: jnp.copy(scores)),
        *(_cell(name, f, x) for name, (f, x) in functions.items()),
    ]


def _cell(name: str, f: Callable, x: Any) -> Cell:
    """`f(x)` written where its last result was, so that no time goes into new memory."""

    def state() -> Any:
        return jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(f, x))

    at_most = SORT_ROUNDS if name in SORTS else None
    return Cell(name, lambda _, x: f(x), state, (x,), at_most=at_most)
