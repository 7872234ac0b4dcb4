"""Training that remembers the networks of the best validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recipes.common import lanes
from recipes.common.journal import At, Journal
from recipes.common.lanes import Network, State
from recipes.common.measures import Accuracy


class End(NamedTuple):
    """The result of a training: stacks of networks, and a number for each lane."""

    network: Network  # after the last step
    step: np.ndarray  # of the best validation accuracy
    early: Network  # at that step
    validation: np.ndarray  # that accuracy


class Course(NamedTuple):
    """All that changes in training, beside the step."""

    state: State
    best: Network
    step: np.ndarray
    accuracy: np.ndarray
    stored: Network


def looks_at(steps: int, chunk_steps: int, evaluations: int) -> list[int]:
    """Steps to measure at: evenly spread, whole chunks where there are several, and the last."""
    chunks = [round(steps * i / evaluations / chunk_steps) for i in range(1, evaluations)]
    return sorted({n * chunk_steps for n in chunks if 0 < n * chunk_steps < steps} | {steps})


def train(
    program: lanes.Program,
    validate: Accuracy,
    network: Network,
    lane: Any,
    looks: Sequence[int],
    journal: Journal,
    name: str,
    first: int = 0,
    store: int | None = None,
) -> tuple[End, Network]:
    """Trains to the last of `looks`, steps at which validation accuracy is measured.

    `first` is the place in the order of the examples at step 0. Also returns the networks at the
    step `store`. A run that is resumed goes on within.
    """

    def go_on(course: Course, start: int, at: At) -> Course:
        for look in (look for look in looks if look >= start):
            between = lambda now, state, c=course: at(now, c._replace(state=state))
            state = lanes.train(program, course.state, lane, look, between, start, first)
            accuracy, start = validate(state.network.variables), look
            better = accuracy > course.accuracy
            course = Course(
                state,
                _where(jnp.asarray(better), state.network, course.best),
                np.where(better, look, course.step),
                np.where(better, accuracy, course.accuracy),
                lanes.copied(state.network) if look == store else course.stored,
            )
        return course

    count = len(lane.order)
    stored = network if store is not None else Network((), (), ())
    none = np.zeros(count, int), np.full(count, -1.0)
    course = Course(lanes.begin(program, network, lane), network, *none, stored)
    course = journal.once(name, looks[-1], course, go_on, f"{count} networks")
    end = End(course.state.network, course.step, course.best, course.accuracy)
    return end, course.stored


@jax.jit
def _where(lane: jax.Array, a: Any, b: Any) -> Any:
    """`a` in the lanes that are True, else `b`."""
    return jax.tree.map(lambda x, y: jax.vmap(jnp.where)(lane, x, y), a, b)
