"""Optimizer steps on synthetic gradients: adam, and adam with masks that rest or change.

No model: a step is `tx.update` and `optax.apply_updates`, on kernels in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.common.results import tree_bytes
from recipes.common.timing import Cell, measure, ratio

SPARSITY = 0.9
DUE, IDLE = 1000, 1001  # a step at which masks change, and one at which they rest
BASELINE, CONTROL = "adam", "adam (A/A)"


class State(NamedTuple):
    """What a training loop carries."""

    params: Any
    opt_state: Any


def optimizer_step(plan: Plan) -> list[Section]:
    """One step of adam, and of adam sparsified in several ways."""
    params, grads = kernels(plan.seed, plan.weights, plan.leaves)
    cells = _cells(params, grads)
    fixed = jp.sparsify(optax.adam(1e-3), jp.fixed(_final_masks(params)))
    cells.append(_cell("fixed", step_of(fixed), fixed.init, params, (grads,)))
    measured = measure("step", cells, plan.repeats, plan.seed, plan.least_seconds)
    noise = ratio(measured, CONTROL, BASELINE)
    no_slower = Target(max(noise.high, 1.0))  # than three quarters of identical steps
    targets = {cell: no_slower for cell in measured if cell.startswith(("idle", "fixed"))}
    targets |= {cell: Target(8, aim=4) for cell in measured if cell.startswith("update")}
    headline = f"Optimizer step, {describe(params)}"
    return [
        comparison("step", headline, measured, [BASELINE], CONTROL, targets, tree_bytes(params))
    ]


def vmapped_step(plan: Plan) -> list[Section]:
    """One step of several seeds at once, each with a tenth of the weights."""
    own = plan._replace(weights=max(plan.weights // 10, plan.leaves))
    each = [kernels(plan.seed + i, own.weights, own.leaves) for i in range(plan.seeds)]
    params, grads = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    cells = _cells(params, grads, plan.seeds)
    measured = measure("vmap", cells, plan.repeats, plan.seed, plan.least_seconds)
    headline = f"Optimizer step vmapped over {plan.seeds} seeds, each {describe(each[0][0])}"
    idle = {cell: Target(1.2) for cell in measured if cell.startswith("idle")}
    return [comparison("vmap", headline, measured, [BASELINE], CONTROL, idle, tree_bytes(params))]


def kernels(seed: int, weights: int, leaves: int) -> tuple[Any, Any]:
    """(params, gradients): about `weights` normal float32 in nearly square kernels, alike."""
    rows = math.isqrt(weights // leaves)
    shape = (rows, weights // leaves // rows)
    keys = jax.random.split(jax.random.key(seed), 2 * leaves)
    drawn = [{"kernel": jax.random.normal(key, shape)} for key in keys]
    names = [f"Dense_{i}" for i in range(leaves)]
    return dict(zip(names, drawn[:leaves], strict=True)), dict(
        zip(names, drawn[leaves:], strict=True)
    )


def describe(params: Any) -> str:
    """How many weights, in how many kernels."""
    leaves = jax.tree.leaves(params)
    total = sum(leaf.size for leaf in leaves)
    return f"{total:,} weights in {len(leaves)} kernel{'s'[: len(leaves) > 1]}"


def gradual(score: jp.base.Score, allocation: jp.base.Allocation) -> Any:
    """Adam with gradual pruning, as a user writes it; its sparsity is traced."""
    ramp = optax.polynomial_schedule(0.0, SPARSITY, power=3, transition_steps=DUE)
    return jp.sparsify(optax.adam(1e-3), jp.every(100, jp.prune(score, allocation, ramp)))


def step_of(tx: optax.GradientTransformation) -> Callable[[State, Any], State]:
    """The plain optax step."""

    def step(state: State, grads: Any) -> State:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state)

    return step


def held_at(step: Callable[[State, Any], State]) -> Callable[..., State]:
    """`step` at a given step number, which is traced: known, it would fold the branch away."""

    def held(state: State, grads: Any, at: jax.Array) -> State:
        return step(State(state.params, state.opt_state._replace(step=at)), grads)

    return held


def from_dense(step: Callable[..., State]) -> Callable[..., State]:
    """`step` from the same dense weights and full masks every time.

    Masks that have been updated are found faster: what is pruned scores -inf, far from the rest.
    """

    def restarted(state: State, grads: Any, at: jax.Array, params: Any, mask_state: Any) -> State:
        opt_state = state.opt_state._replace(mask_state=mask_state)
        return step(State(params, opt_state), grads, at)

    return restarted


def _cells(params: Any, grads: Any, seeds: int | None = None) -> list[Cell]:
    """Adam twice, idle steps and mask updates; all of it vmapped over `seeds`."""
    vmap: Callable = (lambda f: f) if seeds is None else jax.vmap
    lanes = () if seeds is None else (seeds,)
    due, idle = (jnp.full(lanes, at, jnp.int32) for at in (DUE, IDLE))
    adam = optax.adam(1e-3)
    cells = [
        _cell(name, vmap(step_of(adam)), vmap(adam.init), params, (grads,))
        for name in (BASELINE, CONTROL)
    ]
    masks = vmap(_final_masks)(params)
    for allocation in (jp.uniform, jp.global_threshold):
        tx = gradual(jp.magnitude, allocation)
        step = vmap(held_at(step_of(tx)))
        init = _with_masks(vmap(tx.init), masks)
        cells.append(_cell(f"idle, {name_of(allocation)}", step, init, params, (grads, idle)))
    for score, allocation in (
        (jp.magnitude, jp.uniform),
        (jp.magnitude, jp.erk),
        (jp.magnitude, jp.global_threshold),
        (jp.saliency, jp.global_threshold),
    ):
        tx = gradual(score, allocation)
        step = vmap(from_dense(held_at(step_of(tx))))
        full = vmap(tx.init)(params).mask_state
        criterion = ", saliency" if score is jp.saliency else ""
        name = f"update, {name_of(allocation)}{criterion}"
        inputs = (grads, due, params, full)
        cells.append(_cell(name, step, vmap(tx.init), params, inputs))
    return cells


def name_of(allocation: Callable) -> str:
    return "global" if allocation is jp.global_threshold else allocation.__name__


def _cell(name: str, step: Callable, init: Callable, params: Any, inputs: tuple) -> Cell:
    def state() -> State:  # copied: no two leaves may share a buffer
        return jax.tree.map(jnp.copy, State(params, init(params)))

    return Cell(name, step, state, inputs)


@jax.jit
def _final_masks(params: Any) -> Any:
    return jp.select(jp.magnitude(params), jp.global_threshold, SPARSITY)


def _with_masks(init: Callable, masks: Any) -> Callable:
    return lambda params: init(params)._replace(mask_state=jp.MaskState(masks))
