"""`patterns_worth_it`: from which sparsity on a pattern pays on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.fast.choose import PAYS
from jaxprune.fast.forms import candidates
from jaxprune.fast.forms.arrays import Unrolled
from jaxprune.fast.timing import of_rows, times

# words -> the size of what is pruned together, (inputs, outputs); None for the whole axis
PATTERNS: dict[str, tuple[int | None, int | None]] = {
    "single weights": (1, 1),
    "blocks of 16 x 16": (16, 16),
    "blocks of 32 x 32": (32, 32),
    "blocks of 64 x 64": (64, 64),
    "inputs shared by 64 outputs": (1, 64),
    "whole inputs": (1, None),
}


class Worth(NamedTuple):
    """What a pattern gains at a shape and a batch size.

    Attributes:
      shape: (in, out) of the kernel.
      batch: the rows of the inputs.
      pattern: what is pruned together, in words.
      ratios: dense time / time of the fastest form, at each sparsity; 1.0 where none is faster.
      forms: these forms, in words; "dense" where none is faster.
      pays_from: the lowest sparsity from which on the ratio is 1.1 or more; None if it never is.
    """

    shape: tuple[int, int]
    batch: int
    pattern: str
    ratios: tuple[float, ...]
    forms: tuple[str, ...]
    pays_from: float | None


class Table(NamedTuple):
    """The rows of `patterns_worth_it`; printed as a table."""

    sparsities: tuple[float, ...]
    rows: tuple[Worth, ...]

    def __str__(self) -> str:
        head = ("shape", "batch", "pattern", *(f"{100 * s:g} %" for s in self.sparsities))
        cells = [
            (
                *("x".join(map(str, row.shape)), str(row.batch), row.pattern),
                *(f"{ratio:.2g}" for ratio in row.ratios),
                "never" if row.pays_from is None else f"from {100 * row.pays_from:g} %",
            )
            for row in self.rows
        ]
        table = [(*head, "pays"), *cells]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in table)


def patterns_worth_it(
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int] = (1, 32, 256),
    sparsities: Sequence[float] = (0.5, 0.75, 0.9, 0.95),
    patterns: Sequence[str] = tuple(PATTERNS),
    rounds: int = 5,
    clock: Callable[[], float] = time.perf_counter,
    done: Callable[[], None] = lambda: None,
) -> Table:
    """Times x @ kernel dense and sparse, under random masks of each pattern, on this machine.

        print(jp.fast.patterns_worth_it([(1024, 1024)]))

    Masks are balanced over blocks of outputs. The unrolled form is left out: it compiles for long.

    Args:
      shapes: (in, out) of kernels, such as those of a network's `jax.tree.leaves(params)`.
      batches: rows of the inputs.
      sparsities: fractions pruned, in [0, 1), ascending.
      patterns: of `PATTERNS`; those that are larger than a kernel are left out.
      rounds: how often each product is timed.
      clock: seconds; `time.process_time` where other processes keep the machine busy.
      done: called after each pattern, sparsity and batch.

    Raises:
      ValueError: if a shape is no pair of positive integers, a sparsity is outside [0, 1), they do
        not ascend, or a pattern is unknown.
    """
    _check(shapes, sparsities, patterns)
    rows = []
    for shape in shapes:
        draw = np.random.default_rng(0)
        kernel = jnp.asarray(draw.standard_normal(shape), jnp.float32)
        for pattern in patterns:
            size = [own or n for own, n in zip(PATTERNS[pattern], shape, strict=True)]
            if size[0] > shape[0] or size[1] > shape[1]:
                continue
            found = [_best(kernel, size, s, batches, rounds, clock, done) for s in sparsities]
            for i, batch in enumerate(batches):
                ratios = tuple(each[i][0] for each in found)
                forms = tuple(each[i][1] for each in found)
                pays = _pays_from(ratios, sparsities)
                n_in, n_out = shape
                rows.append(Worth((n_in, n_out), batch, pattern, ratios, forms, pays))
    return Table(tuple(sparsities), tuple(sorted(rows, key=lambda row: (row.shape, row.batch))))


def _best(
    kernel: jax.Array,
    size: Sequence[int],
    sparsity: float,
    batches: Sequence[int],
    rounds: int,
    clock: Callable[[], float],
    done: Callable[[], None],
) -> list[tuple[float, str]]:
    """For each batch the ratio of the fastest form, and its name."""
    mask = random_mask(kernel.shape, size, sparsity)
    forms = [own for own in candidates(kernel, mask)[1] if not isinstance(own.form, Unrolled)]
    best = []
    for batch in batches:
        seconds = times(kernel, forms, [of_rows(batch, kernel)], rounds, clock) if forms else {}
        ratios = {own.name: seconds["dense"] / seconds[own.name] for own in forms}
        name = max(ratios, key=lambda n: ratios[n], default="dense")
        best.append((ratios[name], name) if ratios.get(name, 0.0) > 1 else (1.0, "dense"))
        done()
    return best


def random_mask(shape: Sequence[int], size: Sequence[int], sparsity: float) -> np.ndarray:
    """A random mask of blocks, bool: as many for each block of outputs, at least one."""
    (h, w), (n_in, n_out) = size, shape
    n, outputs = -(-n_in // h), -(-n_out // w)
    order = np.random.default_rng(1).random((n, outputs)).argsort(0).argsort(0)
    kept = order < max(n - round(sparsity * n), 1)
    return np.repeat(np.repeat(kept, h, 0), w, 1)[:n_in, :n_out]


def _pays_from(ratios: Sequence[float], sparsities: Sequence[float]) -> float | None:
    """The lowest sparsity from which on all ratios pay."""
    lowest = None
    for ratio, sparsity in reversed(list(zip(ratios, sparsities, strict=True))):
        if ratio < PAYS:
            return lowest
        lowest = sparsity
    return lowest


def _check(shapes: Sequence, sparsities: Sequence[float], patterns: Sequence[str]) -> None:
    for shape in shapes:
        if len(shape) != 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(
                f"patterns_worth_it takes shapes (in, out) of matrices; got {tuple(shape)}. "
                "Flatten the shape of another kernel: its inputs, then its outputs."
            )
    if not all(0 <= s < 1 for s in sparsities) or list(sparsities) != sorted(sparsities):
        raise ValueError(
            f"patterns_worth_it: sparsities are in [0, 1) and ascend; got {tuple(sparsities)}."
        )
    for pattern in patterns:
        if pattern not in PATTERNS:
            raise ValueError(
                f"patterns_worth_it: unknown pattern {pattern!r}; there are {', '.join(PATTERNS)}."
            )
