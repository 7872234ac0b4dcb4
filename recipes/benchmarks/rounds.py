"""The cells of a table, timed as a plan says."""

from __future__ import annotations

import time
from collections.abc import Sequence

import jax

from recipes.benchmarks.section import Plan
from recipes.common.timing import Cell, Clock, Measured, measure


def timed(
    plan: Plan,
    title: str,
    cells: Sequence[Cell],
    at_most: int | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, Measured]:
    """The times of the cells, by name.

    Args:
      title: of the progress bar.
      at_most: rounds, where those of the plan would take too long.
    """
    rounds = plan.repeats if at_most is None else min(plan.repeats, at_most)
    return measure(title, cells, rounds, plan.seed, plan.least_seconds, clock)


def cpu_clock() -> Clock:
    """CPU time of the process, which other processes don't lengthen; wall time on other devices."""
    return time.process_time if jax.default_backend() == "cpu" else time.perf_counter
