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
from recipes.benchmarks.rounds import timed
from recipes.benchmarks.section import Plan, Section, Target, comparison
from recipes.common.report import tree_bytes
from recipes.common.timing import Cell, noise

SPARSITY = 0.9
EVERY = 100  # steps between updates of the masks
UPDATES = 64  # until the final sparsity
BASELINE, CONTROL = "adam", "adam (A/A)"
KEY = jax.random.key(0)
DYNAMIC = {
    "rigl": jp.rigl(KEY, SPARSITY),
    "set": jp.set(KEY, SPARSITY),
    "granet": jp.granet(KEY, optax.polynomial_schedule(0.5, SPARSITY, 3, EVERY * UPDATES)),
}


class State(NamedTuple):
    """What a training loop carries."""

    params: Any
    opt_state: Any


def optimizer_step(plan: Plan) -> list[Section]:
    """One step of adam, and of adam sparsified in several ways."""
    params, grads = kernels(plan.seed, plan.weights, plan.leaves)
    cells = _cells(params, grads)
    fixed = jp.sparsify(optax.adam(1e-3), jp.fixed(_final_masks(params)))
    cells.append(_cell("fixed", step_of(fixed), fixed.init, params, grads))
    measured = timed(plan, "step", cells)
    no_slower = Target(noise(measured, CONTROL, BASELINE).high)
    targets = {cell: no_slower for cell in measured if cell.startswith(("idle", "fixed"))}
    targets |= {cell: Target(8, aim=4) for cell in measured if cell.startswith("update")}
    targets |= {f"idle, {name}": Target(1.3) for name in DYNAMIC}
    targets |= {f"update, {name}": Target(20) for name in DYNAMIC}
    headline = f"Optimizer step, {describe(params)}"
    return [
        comparison("step", headline, measured, [BASELINE], CONTROL, targets, tree_bytes(params))
    ]


def vmapped_step(plan: Plan) -> list[Section]:
    """One step of several seeds at once, each with a tenth of the weights."""
    own = plan._replace(weights=max(plan.weights // 10, plan.leaves))
    each = [kernels(plan.seed + i, own.weights, own.leaves) for i in range(plan.seeds)]
    params, grads = jax.tree.map(lambda *xs: jnp.stack(xs), *each)
    cells = _cells(params, grads, jax.vmap)
    measured = timed(plan, "vmap", cells)
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
    """Adam with gradual pruning, as a user writes it: the sparsity is traced, and rises."""
    ramp = optax.polynomial_schedule(0.0, SPARSITY, power=3, transition_steps=EVERY * UPDATES)
    return jp.sparsify(optax.adam(1e-3), jp.every(EVERY, jp.prune(score, allocation, ramp)))


def step_of(tx: optax.GradientTransformation) -> Callable[[State, Any], State]:
    """The plain optax step."""

    def step(state: State, grads: Any) -> State:
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state)

    return step


def at_rest(step: Callable[[State, Any], State]) -> Callable[[State, Any], State]:
    """`step`, always at a step without an update of the masks; its number stays traced."""
    return _renumbered(step, lambda number: number // EVERY * EVERY + 1)


def at_updates(step: Callable[[State, Any], State]) -> Callable[[State, Any], State]:
    """`step`, from one update of the masks to the next.

    The same update again would be no measure: masks that need not change are found much faster.
    """
    return _renumbered(step, lambda number: (number + EVERY - 1) // EVERY * EVERY)


def _renumbered(step: Callable[[State, Any], State], f: Callable) -> Callable[[State, Any], State]:
    def renumbered(state: State, grads: Any) -> State:
        opt_state = state.opt_state._replace(step=f(state.opt_state.step))
        return step(State(state.params, opt_state), grads)

    return renumbered


def name_of(allocation: Callable) -> str:
    return "global" if allocation is jp.global_threshold else allocation.__name__


def _cells(params: Any, grads: Any, vmap: Callable = lambda f: f) -> list[Cell]:
    """Adam twice, idle steps and mask updates; all of it vmapped, if `vmap` is."""
    adam = optax.adam(1e-3)
    cells = [
        _cell(name, vmap(step_of(adam)), vmap(adam.init), params, grads)
        for name in (BASELINE, CONTROL)
    ]
    masks = vmap(_final_masks)(params)
    for allocation in (jp.uniform, jp.global_threshold):
        tx = gradual(jp.magnitude, allocation)
        init = _with_masks(vmap(tx.init), masks)
        name = f"idle, {name_of(allocation)}"
        cells.append(_cell(name, vmap(at_rest(step_of(tx))), init, params, grads))
    for score, allocation in (
        (jp.magnitude, jp.uniform),
        (jp.magnitude, jp.erk),
        (jp.magnitude, jp.global_threshold),
        (jp.saliency, jp.global_threshold),
    ):
        tx = gradual(score, allocation)
        criterion = ", saliency" if score is jp.saliency else ""
        name = f"update, {name_of(allocation)}{criterion}"
        step = vmap(at_updates(step_of(tx)))
        cells.append(_cell(name, step, vmap(tx.init), params, grads, lifetime=UPDATES))
    for name, method in DYNAMIC.items():
        tx = jp.sparsify(optax.adam(1e-3), jp.every(EVERY, method))
        idle, update = vmap(at_rest(step_of(tx))), vmap(at_updates(step_of(tx)))
        cells += [
            _cell(f"idle, {name}", idle, vmap(tx.init), params, grads),
            _cell(f"update, {name}", update, vmap(tx.init), params, grads, lifetime=UPDATES),
        ]
    return cells


def _cell(
    name: str, step: Callable, init: Callable, params: Any, grads: Any, lifetime: int | None = None
) -> Cell:
    def state() -> State:  # copied: no two leaves may share a buffer
        return jax.tree.map(jnp.copy, State(params, init(params)))

    return Cell(name, step, state, (grads,), lifetime=lifetime)


@jax.jit
def _final_masks(params: Any) -> Any:
    return jp.select(jp.magnitude(params), jp.global_threshold, SPARSITY)


def _with_masks(init: Callable, masks: Any) -> Callable:
    return lambda params: init(params)._replace(mask_state=jp.MaskState(masks))
