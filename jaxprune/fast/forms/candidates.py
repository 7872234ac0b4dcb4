"""The forms that a mask allows, and why it does not allow the others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.export.sparse import to_bcsr
from jaxprune.fast.block_product.blocks import kept_blocks, to_blocks
from jaxprune.fast.forms.arrays import ByColumns, ByRows, Cut, Single, Unrolled

FORMS = (ByRows, ByColumns, Unrolled, Single, Cut)
SIZES = ((64, 64), (32, 32), (16, 16), (8, 8), (1, 128), (1, 64), (1, 32), (1, 16))
MOST = 0.6  # of the blocks: with more, a sparse product is no faster
MOST_SINGLE = 0.3  # of the weights, by outputs
MOST_UNROLLED = 64  # products in a program


class Candidate(NamedTuple):
    """A form of a kernel, and its name in the table."""

    name: str
    form: Any


def candidates(kernel: jax.Array, mask: np.ndarray) -> tuple[str, list[Candidate]]:
    """(the pattern of a mask in words, the forms of the kernel).

    Args:
      kernel: (in, out), float.
      mask: bool, of that shape, known.
    """
    found = []
    n_in, n_out = kernel.shape
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    used = len(rows) * len(columns) / mask.size
    if used <= MOST:
        values = jnp.where(mask, kernel, 0)[rows][:, columns]
        cut = Cut(values, tuple(rows.tolist()), tuple(columns.tolist()), (n_in, n_out))
        found.append(Candidate("cut to used inputs and outputs", cut))
    density = float(mask.mean())
    sizes = block_sizes(mask)
    for h, w in sizes:
        blocks = to_blocks(kernel, jnp.asarray(mask), h, w)
        of = f"blocks of {h} x {w}"
        found += [
            Candidate(f"{of}, by rows", ByRows(blocks)),
            Candidate(f"{of}, by columns", ByColumns(blocks)),
        ]
        if h > 1 and len(blocks.values) <= MOST_UNROLLED:
            places = tuple(map(tuple, np.asarray(blocks.inputs).tolist()))
            form = Unrolled(blocks.values, places, blocks.shape)
            found.append(Candidate(f"{of}, unrolled", form))
    if density <= 0.3:
        found.append(
            Candidate("single weights, BCSR", Single(to_bcsr({"w": kernel}, {"w": mask})["w"]))
        )
    if used <= 1.1 * density:
        words = "inputs and outputs"
    elif sizes and covered(mask, *sizes[0]) <= 1.05 * density:
        h, w = sizes[0]
        words = f"inputs shared by {w} outputs" if h == 1 else f"blocks of {h} x {w}"
    else:
        words = "single weights"
    return words, found


def block_sizes(mask: np.ndarray) -> list[tuple[int, int]]:
    """At most two sizes of blocks for a mask: what keeps least, and the next larger one."""
    fits = []
    for h, w in SIZES:
        share = kept(mask, h, w)
        if h <= mask.shape[0] and w <= mask.shape[1] and share <= MOST:
            fits.append((round(share / max(float(mask.mean()), 1e-9), 1), -h * w, (h, w)))
    sizes = [size for _, _, size in sorted(fits)]
    larger = [size for size in sizes if math.prod(size) > math.prod(sizes[0])]
    return [*sizes[:1], *larger[:1]]


def covered(mask: np.ndarray, h: int, w: int) -> float:
    """The share of the blocks that have a kept weight."""
    return float(np.asarray(kept_blocks(jnp.asarray(mask), h, w)).mean())


def kept(mask: np.ndarray, h: int, w: int) -> float:
    """The share of the weights that the slots of blocks hold, empty slots included."""
    counts = np.asarray(kept_blocks(jnp.asarray(mask), h, w)).sum(1)
    return float(counts.max(initial=0) * len(counts) * h * w / mask.size)
