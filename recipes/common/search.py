"""Search with two objectives by NSGA-II: trials are asked for, and told, a population at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

MISSING = "needs a package: pip install 'jaxprune[search]'"
Choices = Mapping[str, Sequence[Any]]  # a name -> its values; (lowest, highest) floats: a log scale


def installed() -> bool:
    """Whether the package of the search is there."""
    return find_spec("optuna") is not None


class Search:
    """Two objectives to make small, over named choices.

    The trials depend only on the seed and on what was told before: a search that is told the same
    results again asks for the same trials.

    Reference: Deb, Pratap, Agarwal and Meyarivan, 2002, A Fast and Elitist Multiobjective Genetic
    Algorithm: NSGA-II.
    """

    def __init__(self, choices: Choices, population: int, seed: int, first: Mapping[str, Any]):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        sampler = optuna.samplers.NSGAIISampler(population_size=population, seed=seed)
        self._study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        self._study.enqueue_trial(dict(first))
        self._choices, self._population = choices, population
        self._asked: list[Any] = []

    def ask(self) -> list[dict[str, Any]]:
        """The next trials, as many as the population; the very first is `first`."""
        self._asked = [self._study.ask() for _ in range(self._population)]
        return [{name: self._value(trial, name) for name in self._choices} for trial in self._asked]

    def tell(self, objectives: Sequence[Sequence[float]]) -> None:
        """The two objectives of each trial that was asked for last."""
        for trial, values in zip(self._asked, objectives, strict=True):
            self._study.tell(trial, list(values))

    def _value(self, trial: Any, name: str) -> Any:
        values = self._choices[name]
        if len(values) == 2 and all(isinstance(value, float) for value in values):
            return trial.suggest_float(name, *values, log=True)
        return trial.suggest_categorical(name, list(values))


def front(objectives: Any) -> np.ndarray:
    """Which points (n, 2) no other point dominates: bool (n,).

    A point dominates another if it is at most as large in both objectives, and smaller in one.

    >>> front([(1.0, 5.0), (2.0, 2.0), (3.0, 3.0), (2.0, 2.0)])
    array([ True,  True, False,  True])
    """
    points = np.asarray(objectives, float)
    no_larger = (points[:, None] <= points).all(-1)
    smaller = (points[:, None] < points).any(-1)
    return np.asarray(~(no_larger & smaller).any(0))
