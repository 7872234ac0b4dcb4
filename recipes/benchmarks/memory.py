"""Bytes a weight: masks in memory and in a file, and what an optimizer step needs beside them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.benchmarks.section import Figure, Plan, Section, Target
from recipes.benchmarks.steps import State, describe, gradual, kernels, name_of, step_of
from recipes.common import checkpoint
from recipes.common.progress import progress
from recipes.common.results import tree_bytes
from recipes.common.timing import temp_bytes

NO_SECOND_COPY = Target(1, unit="of the params")


def bytes_a_weight(plan: Plan) -> list[Section]:
    """What masks and steps cost in memory; no array of a step is made to find that out."""
    params = jax.eval_shape(lambda: kernels(plan.seed, plan.weights, plan.leaves)[0])
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))
    allocations = (jp.uniform, jp.erk, jp.global_threshold)
    optimizers = {"adam": optax.adam(1e-3)}
    optimizers |= {
        f"sparsified, {name_of(allocation)}": gradual(jp.magnitude, allocation)
        for allocation in allocations
    }
    with progress("memory", 1 + len(optimizers)) as show:
        numbers = _masks(params, plan.seed)
        show(1, "masks")
        for i, (name, tx) in enumerate(optimizers.items()):
            numbers[f"state of {name}"] = tree_bytes(_state(tx, params))
            temporary = _temporary(tx, params)
            if temporary is not None:
                numbers[f"temporary in a step of {name}"] = temporary
            show(2 + i, name)
    return [_section(f"Memory of {describe(params)} in float32", numbers, weights)]


def _masks(params: Any, seed: int) -> dict[str, int]:
    """Bytes of masks that keep a random half: none compress less."""
    scores = jp.random(jax.random.key(seed))(params)
    masks = jp.select(scores, jp.global_threshold, 0.5)
    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save_checkpoint(Path(folder), 0, masks)
        file = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file())
    return {
        "masks": tree_bytes(masks),
        "masks, packed": tree_bytes(checkpoint.pack(masks)),
        "masks, in a file": file,
    }


def _state(tx: optax.GradientTransformation, params: Any) -> State:
    return jax.eval_shape(lambda params: State(params, tx.init(params)), params)


def _temporary(tx: optax.GradientTransformation, params: Any) -> int | None:
    """What one step needs beside its donated state and the gradients."""
    jitted = jax.jit(step_of(tx), donate_argnums=0)
    return temp_bytes(jitted.lower(_state(tx, params), params).compile())


def _section(headline: str, numbers: dict[str, int], weights: int) -> Section:
    param_bytes = weights * jnp.dtype(jnp.float32).itemsize
    figures = [
        Figure(name, numbers[name] / weights, Target(bound, unit="bytes a weight"))
        for name, bound in (("masks", 1), ("masks, packed", 1 / 8))
    ]
    for name in ("uniform", "global"):
        used = numbers.get(f"temporary in a step of sparsified, {name}")
        if used is not None:
            figures.append(
                Figure(f"memory of an update, {name}", used / param_bytes, NO_SECOND_COPY)
            )
    return Section(
        name="memory",
        headline=headline,
        columns=("MB", "bytes a weight", "times the params"),
        rows=[
            [name, f"{x / 1e6:,.2f}", f"{x / weights:.4f}", f"{x / param_bytes:.3f}"]
            for name, x in numbers.items()
        ],
        numbers={"weights": weights, "bytes": numbers},
        figures=figures,
    )
