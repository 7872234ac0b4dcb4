"""Programs timed beside each other in one process: paired, in random order, their state donated.

Times depend on what ran before and on what else the machine does. So every round times all cells,
in another order each round, and a ratio compares two times of one round. Identical cells (A/A) show
the noise. `latencies` times forward passes of networks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.structured import Compact
from recipes.common.terminal import counted

Clock = Callable[[], float]  # seconds
_TRIES = 8  # at the length of a sample, each at most ten times the one before


class Spread(NamedTuple):
    """A median and its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float] | np.ndarray) -> Spread:
        low, median, high = np.quantile(np.asarray(values, np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Cell:
    """A program to time: `step(state, *inputs) -> state`, jitted and chained.

    Attributes:
      name: unique among the cells that it is compared with.
      step: a pure function.
      state: makes the first state, in new buffers: they are donated.
      inputs: pytrees of arrays that all steps read; several cells may share them.
      donate: whether a step may overwrite the state that it was given.
      at_most: rounds that it takes part in, the first ones; None for all.
      period: the steps of a sample are a multiple of this.
      lifetime: steps until a new first state, outside the clock; None for never.
      times: a factor of the time of a step; 1/n if it takes n steps in a loop.
    """

    name: str
    step: Callable[..., Any]
    state: Callable[[], Any]
    inputs: tuple[Any, ...] = ()
    donate: bool = True
    at_most: int | None = None
    period: int = 1
    lifetime: int | None = None
    times: float = 1


class Measured(NamedTuple):
    """The time and the memory of a cell.

    Attributes:
      seconds: of one step in each round that it took part in, the first ones; (rounds,).
      compile_seconds: from the function to a program, once; None if compilation was timed.
      temp_bytes: memory beside arguments and results; None if unknown.
    """

    seconds: np.ndarray
    compile_seconds: float | None = None
    temp_bytes: int | None = None


def ratio(measured: Mapping[str, Measured], name: str, to: str) -> Spread:
    """The time of the cell `name` over that of the cell `to`, paired by round."""
    rounds = min(len(measured[cell].seconds) for cell in (name, to))
    return Spread.of(measured[name].seconds[:rounds] / measured[to].seconds[:rounds])


def noise(measured: Mapping[str, Measured], name: str, to: str) -> Spread:
    """The range of the ratio of two identical cells; either may be the baseline."""
    own = ratio(measured, name, to)
    return Spread(1.0, min(own.low, 1 / own.high), max(own.high, 1 / own.low))


def orders(names: Sequence[str], rounds: int, seed: int) -> Iterator[list[str]]:
    """For each round a random permutation of `names`."""
    generator = np.random.default_rng(seed)
    for _ in range(rounds):
        yield [names[i] for i in generator.permutation(len(names))]


def interleaved(
    runs: Mapping[str, Callable[[], Any]],
    rounds: int,
    seed: int,
    at_most: Mapping[str, int | None] | None = None,
    clock: Clock = time.perf_counter,
    done: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of each of `runs` in each round; entry r of all lists is from round r.

    Args:
      runs: name -> a function to time; it returns when its work is done.
      at_most: name -> rounds that it takes part in; None or absent for all.
      done: called with the name after each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i, names in enumerate(orders(list(runs), rounds, seed)):
        for name in names:
            limit = (at_most or {}).get(name)
            if limit is not None and i >= limit:
                continue
            began = clock()
            runs[name]()
            seconds[name].append(clock() - began)
            done(name)
    return seconds


class Program:
    """A compiled cell with its state. `run()` is one sample: `steps` steps, and waits for them."""

    def __init__(self, cell: Cell, clock: Clock = time.perf_counter):
        self.cell, self.clock = cell, clock
        self.state = cell.state()
        self.steps, self.age = cell.period, 0
        donated = 0 if cell.donate else ()
        # unused arguments are kept, or a state that is only written could not be donated
        jitted = jax.jit(lambda *args: cell.step(*args), donate_argnums=donated, keep_unused=True)
        began = clock()
        self.compiled = jitted.lower(self.state, *cell.inputs).compile()
        self.compile_seconds = clock() - began
        self.temp_bytes = temp_bytes(self.compiled)

    def run(self) -> None:
        for _ in range(self.steps):
            self.state = self.compiled(self.state, *self.cell.inputs)
        jax.block_until_ready(self.state)
        self.age += self.steps

    def renew(self) -> None:
        """Makes a new first state if the next sample would outlive this one."""
        if self.cell.lifetime is not None and self.age + self.steps > self.cell.lifetime:
            self.state = jax.block_until_ready(self.cell.state())
            self.age = 0

    def warm_up(self, least_seconds: float) -> None:
        """Touches all memory; then makes a sample last at least `least_seconds`."""
        for _ in range(_TRIES):  # the first run has pages to fault and code to load
            began = self.clock()
            self.run()
            seconds = self.clock() - began
            longest = self.cell.lifetime or math.inf
            if seconds < least_seconds and self.steps < longest:
                growth = min(1.2 * least_seconds / max(seconds, 1e-9), 10)
                periods = math.ceil(self.steps * growth / self.cell.period)
                self.steps = int(min(periods * self.cell.period, longest))
                self.renew()
            else:
                self.renew()
                return


def temp_bytes(compiled: Any) -> int | None:
    """Memory of a compiled program beside its arguments and results; None if unknown."""
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


def measure(
    title: str,
    cells: Sequence[Cell],
    rounds: int,
    seed: int,
    least_seconds: float = 0.02,
    clock: Clock = time.perf_counter,
) -> dict[str, Measured]:
    """Compiles and warms up all cells, then times them in `rounds` rounds; shows a progress bar.

    Args:
      least_seconds: the length of a sample; it has as many steps as that takes.
    """
    samples = sum(rounds if cell.at_most is None else min(cell.at_most, rounds) for cell in cells)
    with counted(title, len(cells) + samples) as done:

        def timed(name: str) -> None:
            programs[name].renew()
            done(name)

        programs = {}
        for cell in cells:
            programs[cell.name] = Program(cell, clock)
            programs[cell.name].warm_up(least_seconds)
            done(f"compiled {cell.name}")
        runs = {name: program.run for name, program in programs.items()}
        at_most = {cell.name: cell.at_most for cell in cells}
        seconds = interleaved(runs, rounds, seed, at_most, clock, timed)
    return {
        name: Measured(
            np.asarray(seconds[name]) * program.cell.times / program.steps,
            program.compile_seconds,
            program.temp_bytes,
        )
        for name, program in programs.items()
    }


@contextmanager
def no_compilation_cache() -> Iterator[None]:
    """Within it every program is compiled anew, whatever JAX_COMPILATION_CACHE_DIR holds."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


BATCHES = (1, 256)
CONTROL = "A/A"  # the first network again: the difference of its times is noise


def latencies(
    networks: Mapping[str, Compact],
    image: tuple[int, ...],
    batches: Sequence[int] = BATCHES,
    rounds: int = 15,
    seed: int = 0,
    least_seconds: float = 0.02,
) -> dict[str, dict[str, Any]]:
    """{batch: {name: {"seconds", "times_as_fast"}}}, each {"median", "low", "high"}.

    `times_as_fast` compares with the first network, paired by round. `CONTROL` is the first network
    once more: its numbers are noise.

    Args:
      networks: `fn(params, images)`; the others are compared with the first.
      image: the shape of one, (h, w, c).
      rounds: how often each is timed, in a new random order each time.
      least_seconds: the length of a sample; it has as many batches as that takes.
    """
    first = next(iter(networks))
    found = {}
    for batch in batches:
        images = np.random.default_rng(seed).standard_normal((batch, *image), np.float32)
        timed = {**networks, CONTROL: networks[first]}
        cells = [forward(name, own.fn, own.params, images) for name, own in timed.items()]
        title = f"forward passes, batch of {batch}"
        measured = measure(title, cells, rounds, seed, least_seconds)
        found[str(batch)] = {name: _numbers(measured, name, first) for name in measured}
    return found


def forward(name: str, fn: Callable[..., Any], variables: Any, images: Any) -> Cell:
    """A pass as a step: its images are shifted by its logits, so that one waits for the other."""

    def step(shift: jax.Array, variables: Any, images: jax.Array) -> jax.Array:
        return 1e-6 * jnp.mean(fn(variables, images + shift))

    return Cell(name=name, state=partial(jnp.zeros, ()), step=step, inputs=(variables, images))


def _numbers(measured: Mapping[str, Measured], name: str, first: str) -> dict[str, Any]:
    faster = (noise if name == CONTROL else ratio)(measured, first, name)
    seconds = Spread.of(measured[name].seconds)
    return {"seconds": seconds._asdict(), "times_as_fast": faster._asdict()}
