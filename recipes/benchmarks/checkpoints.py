"""Checkpoints: the bytes of masks, and the time that a checkpoint takes from training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.benchmarks.section import Figure, Plan, Section, Target, digits, megabytes
from recipes.benchmarks.steps import SPARSITY, State, describe, kernels, step_of
from recipes.common.checkpoints import Checkpoints
from recipes.common.settings import Settings
from recipes.common.terminal import counted

DENSE, WORST, SPARSE = "adam", "adam and masks, no zeros", f"adam, {100 * SPARSITY:g} % sparse"
SAVES = 5  # at most, of each


class Saved(NamedTuple):
    """One checkpoint of a state that is being trained."""

    size: int  # bytes
    blocked: float  # seconds until training went on
    written: float  # seconds until it was whole
    lost: float  # seconds that training was behind when it was


def checkpoints(plan: Plan) -> list[Section]:
    """Sparse states beside dense ones, saved while they train."""
    params, grads = kernels(plan.seed, plan.weights, plan.leaves)
    scores = jp.random(jax.random.key(plan.seed))(params)
    half = jp.select(scores, jp.global_threshold, 0.5)  # no masks compress less
    tenth = jp.select(jp.magnitude(params), jp.global_threshold, SPARSITY)
    dense, sparse = optax.adam(1e-3), jp.sparsify(optax.adam(1e-3), jp.fixed(tenth))
    beside: dict[str, tuple[Any, Any]] = {
        DENSE: (dense, None),
        WORST: (dense, half),
        SPARSE: (sparse, None),
    }
    rounds = min(plan.repeats, SAVES)
    found: dict[str, list[Saved]] = {name: [] for name in beside}
    with counted("checkpoints", rounds * len(beside)) as done:
        for _ in range(rounds):
            for name, (tx, masks) in beside.items():
                found[name].append(_save(tx, params, grads, masks))
                done(name)
    return [_section(params, {name: _medians(own) for name, own in found.items()})]


def _save(tx: Any, params: Any, grads: Any, masks: Any) -> Saved:
    """Trains for a while, saves, and trains until all is written."""
    step = jax.jit(step_of(tx), donate_argnums=0)
    state = jax.tree.map(jnp.copy, State(params, tx.init(params)))  # donated
    for _ in range(2):  # moments that are no zeros, and compilation
        state = jax.block_until_ready(step(state, grads))
    pace, state = _pace(step, state, grads)
    with tempfile.TemporaryDirectory() as folder, closing(Checkpoints(Path(folder))) as kept:
        began = time.perf_counter()
        kept.save(0, {"state": state, "masks": masks}, {})
        blocked, steps = time.perf_counter() - began, 0
        while kept.busy:
            state, steps = jax.block_until_ready(step(state, grads)), steps + 1
        written = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return Saved(size, blocked, written, max(written - steps * pace, blocked))


def _pace(step: Callable, state: State, grads: Any) -> tuple[float, State]:
    """Seconds of one step."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        state = jax.block_until_ready(step(state, grads))
        times.append(time.perf_counter() - began)
    return float(np.median(times)), state


def _medians(saved: list[Saved]) -> Saved:
    size, *seconds = np.median(np.array(saved), axis=0).tolist()
    return Saved(int(size), *seconds)


def _section(params: Any, found: dict[str, Saved]) -> Section:
    dense, every = found[DENSE], Settings().checkpoint_every
    rows = [
        [
            name,
            megabytes(own.size),
            f"{own.size / dense.size:.3f}",
            digits(1e3 * own.blocked),
            digits(1e3 * own.written),
            f"{own.written / dense.written:.2f}",
            f"{100 * own.lost / every:.2f} %",
        ]
        for name, own in found.items()
    ]
    figures = [
        Figure(
            "checkpoints: bytes with masks / dense", found[WORST].size / dense.size, Target(1.04)
        )
    ]
    figures += [
        Figure(f"checkpoints: share of training lost, {name}", own.lost / every, Target(0.05))
        for name, own in found.items()
    ]
    return Section(
        name="checkpoints",
        headline=f"A checkpoint every {every:g} s while training, {describe(params)}",
        columns=("MB", "/ dense", "blocked ms", "written ms", "/ dense", "lost"),
        rows=rows,
        numbers={"every": every, **{name: own._asdict() for name, own in found.items()}},
        figures=figures,
    )
