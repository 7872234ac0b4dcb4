"""Schedules of sparsities and fractions: their values at a step and at their end, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import check_sparsity, is_count, is_known

# The step at which a schedule is past all its transitions, 16,777,216. Every integer up to it is a
# float32, and the int32 arithmetic of a schedule, such as `step + 1` or `100 * step`, fits there.
END = 2**24

# steps at which a schedule is checked: all of the first 4,096, then fewer and fewer
_SAMPLES = np.unique(np.geomspace(4096, END, 1024).round().astype(np.int64))
_SAMPLES = np.concatenate([np.arange(4096), _SAMPLES[1:]])


def first_value(schedule: optax.Schedule) -> Any:
    """The first value of a schedule: a number where it is known, else traced."""
    # a number belongs to no mesh, also inside a shard_map
    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    with no_mesh, jax.ensure_compile_time_eval():
        return schedule(jnp.int32(0))


def last_value(schedule: optax.Schedule) -> float | None:
    """The last value of a schedule; None if it is traced."""
    values = _values(schedule, np.array([END]))
    return None if values is None else float(values[0])


def sparsity_at(schedule: Any, step: Any, at_end: Any = False) -> Any:
    """The sparsity of a schedule at `step`, its last one where `at_end`; a number is itself.

    See `as_sparsity`.
    """
    return as_sparsity(_value(schedule, step, at_end))


def as_sparsity(value: Any) -> Any:
    """`value` itself. A traced value can't be refused: nan, inf, 1 and 2 are read as 0.

    0 prunes nothing; the nearest fraction would prune all weights, for good.
    """
    return _fraction(value, jnp.less)


def fraction_at(schedule: Any, step: Any, at_end: Any = False) -> Any:
    """As `sparsity_at`, for a fraction in [0, 1]; any other traced value is read as 0."""
    return _fraction(_value(schedule, step, at_end), jnp.less_equal)


def _fraction(value: Any, below: Callable[..., Any]) -> Any:
    if not isinstance(value, jax.Array) or is_known(value) or is_count(value):
        return value
    return jnp.where((value >= 0) & below(value, 1), value, jnp.zeros_like(value))


def _value(schedule: Any, step: Any, at_end: Any) -> Any:
    if not callable(schedule):
        return schedule
    value = schedule(jnp.asarray(step, jnp.int32))
    if not isinstance(value, jax.Array):
        return value  # a number at every step
    if at_end is not False:
        last = last_value(schedule)
        end = schedule(jnp.maximum(step, END)) if last is None else jnp.asarray(last, value.dtype)
        value = jnp.where(at_end & (step < END), end, value)
    return value


def check_schedule(schedule: optax.Schedule) -> None:
    """ValueError if a known schedule is no sparsity at some step."""
    for when, value in wrong_values(schedule, lambda s: (s >= 0) & (s < 1)):
        raise ValueError(
            f"the sparsity schedule {when} {value}; a sparsity is a fraction in [0, 1). "
            "optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=...) ends at 0.9; "
            "a function of your own must level off: jnp.minimum(step / 1000, 1.0) * 0.9."
        )


def check_sparsities(sparsity: Any, of: str = "weights") -> None:
    """ValueError if a sparsity, or a known schedule of it at some step, is out of range."""
    if callable(sparsity):
        check_schedule(sparsity)
    else:
        check_sparsity(sparsity, of=of)


def wrong_values(
    schedule: optax.Schedule, is_right: Callable[[np.ndarray], np.ndarray]
) -> list[tuple[str, Any]]:
    """("starts at", "ends at" or "is, at step 7,", value) where a known schedule is wrong.

    It is read at the first 4,096 steps, at some later steps, and at its end.
    """
    first = first_value(schedule)
    if is_known(first) and np.ndim(first) != 0:
        return [("starts at", first)]
    values = _values(schedule, _SAMPLES)
    if values is None:
        return []
    names = {0: "starts at", len(_SAMPLES) - 1: "ends at"}
    wrong = np.flatnonzero(~is_right(values))
    order = [*sorted(set(wrong) & set(names)), *wrong]
    return [
        (names.get(int(i), f"is, at step {_SAMPLES[i]:,},"), round(float(values[i]), 7))
        for i in order
    ]


def _values(schedule: optax.Schedule, steps: np.ndarray) -> np.ndarray | None:
    """A schedule at these steps, float64; None where it is traced."""
    if not is_known(first_value(schedule)):
        return None
    no_mesh = jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
    # in 64 bits no product of a step overflows; some schedules accept int32 only
    for dtype in (jnp.int64, jnp.int32):
        with no_mesh, jax.ensure_compile_time_eval(), jax.enable_x64(dtype == jnp.int64):
            try:
                return np.asarray(jax.vmap(schedule)(jnp.asarray(steps, dtype)), np.float64)
            except TypeError:
                pass
    # a schedule that branches in Python is read step by step
    few = steps[np.unique(np.geomspace(1, len(steps), 64).astype(int)) - 1]
    with no_mesh, jax.ensure_compile_time_eval():
        read = [float(schedule(jnp.asarray(step, jnp.int32))) for step in few]
    return np.asarray(read)[np.searchsorted(few, steps, side="right") - 1]
