"""Bytes a weight: masks in memory and in a file, and what an optimizer step needs beside them."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import optax

import jaxprune as jp
from recipes.benchmarks.section import Figure, Plan, Section, Target, megabytes, share
from recipes.benchmarks.steps import State, describe, gradual, kernels, name_of, step_of
from recipes.common.checkpoints import Checkpoints
from recipes.common.report import tree_bytes
from recipes.common.terminal import counted
from recipes.common.timing import temp_bytes

ALLOCATIONS = (jp.uniform, jp.erk, jp.global_threshold)


def bytes_a_weight(plan: Plan) -> list[Section]:
    """What masks and steps cost in memory; no array of a step is made to find that out."""
    params = jax.eval_shape(lambda: kernels(plan.seed, plan.weights, plan.leaves)[0])
    optimizers = {"adam": optax.adam(1e-3)}
    optimizers |= {name_of(own): gradual(jp.magnitude, own) for own in ALLOCATIONS}
    with counted("memory", 1 + len(optimizers)) as done:
        masks = _masks(params, plan.seed)
        done("masks")
        states, temporary = {}, {}
        for name, tx in optimizers.items():
            states[name] = tree_bytes(_state(tx, params))
            temporary[name] = _temporary(tx, params)
            done(name)
    return [_of_masks(params, masks), _of_steps(params, states, temporary)]


def _masks(params: Any, seed: int) -> dict[str, int]:
    """Bytes of masks that keep a random half: none compress less."""
    scores = jp.random(jax.random.key(seed))(params)
    masks = jp.select(scores, jp.global_threshold, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        with closing(Checkpoints(Path(folder))) as checkpoints:
            checkpoints.save(0, masks, {})
        file = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {"in memory": tree_bytes(masks), "in a file": file}


def _state(tx: optax.GradientTransformation, params: Any) -> State:
    return jax.eval_shape(lambda params: State(params, tx.init(params)), params)


def _temporary(tx: optax.GradientTransformation, params: Any) -> int | None:
    """What one step needs beside its donated state and the gradients, an update included."""
    jitted = jax.jit(step_of(tx), donate_argnums=0)
    return temp_bytes(jitted.lower(_state(tx, params), params).compile())


def _of_masks(params: Any, masks: dict[str, int]) -> Section:
    weights = tree_bytes(params) // 4
    metadata = 0.005  # beside the eighth of a byte
    bounds = {"in memory": 1.0, "in a file": 1 / 8 + metadata}
    return Section(
        name="masks",
        headline=f"Masks of {describe(params)}, half of them kept",
        columns=("MB", "bytes a weight"),
        rows=[[name, megabytes(x), f"{x / weights:.4f}"] for name, x in masks.items()],
        numbers={"weights": weights, "bytes": masks},
        figures=[
            Figure(f"masks: bytes a weight {name}", masks[name] / weights, Target(bound))
            for name, bound in bounds.items()
        ],
    )


def _of_steps(params: Any, states: dict[str, int], temporary: dict[str, int | None]) -> Section:
    size = tree_bytes(params)
    return Section(
        name="memory",
        headline=f"Memory of adam and of sparsified adam, {describe(params)}",
        columns=("state MB", "/ params", "temporary MB", "/ params"),
        rows=[
            [name, megabytes(own), share(own, size), megabytes(used), share(used, size)]
            for (name, own), used in zip(states.items(), temporary.values(), strict=True)
        ],
        numbers={"param_bytes": size, "state_bytes": states, "temporary_bytes": temporary},
        figures=[
            Figure(f"memory: temporary / params, {name}", used / size, Target(1))
            for name, used in temporary.items()
            if used is not None and name != "adam"
        ],
    )
