"""The forms that a mask allows, and why it does not allow the others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.export.sparse import to_bcsr
from jaxprune.fast.block_product import Blocks
from jaxprune.fast.block_product.blocks import kept_blocks, to_blocks
from jaxprune.fast.forms.arrays import (
    ByColumns,
    ByRows,
    Cut,
    CutWindow,
    Shifted,
    Single,
    Unrolled,
)

FORMS = (ByRows, ByColumns, Unrolled, Single, Cut, Shifted, CutWindow)
SIZES = ((64, 64), (32, 32), (16, 16), (8, 8), (1, 128), (1, 64), (1, 32), (1, 16))
MOST = 0.6  # of the blocks: with more, a sparse product is no faster
MOST_SINGLE = 0.3  # of the weights, by outputs
MOST_UNROLLED = 64  # products in a program
MOST_SHIFTED = 512  # slices of images in a program


class Candidate(NamedTuple):
    """A form of a kernel, and its name in the table."""

    name: str
    form: Any


def candidates(kernel: jax.Array, mask: np.ndarray) -> tuple[str, list[Candidate]]:
    """(the pattern of a mask in words, the forms of the kernel).

    Args:
      kernel: (in, out), float; or (layers, in, out), a stack: its forms are stacks too.
      mask: bool, of that shape, known.
    """
    if kernel.ndim == 3:
        return _of_stack(kernel, mask)
    found = []
    n_in, n_out = kernel.shape
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if len(rows) * len(columns) / mask.size <= MOST:
        values = jnp.where(mask, kernel, 0)[rows][:, columns]
        cut = Cut(values, tuple(rows.tolist()), tuple(columns.tolist()), (n_in, n_out))
        found.append(Candidate("cut to used inputs and outputs", cut))
    for h, w in block_sizes(mask):
        blocks = to_blocks(kernel, jnp.asarray(mask), h, w)
        found += _gathered(blocks)
        if h > 1 and len(blocks.values) <= MOST_UNROLLED:
            form = Unrolled(blocks.values, _places(blocks), blocks.shape)
            found.append(Candidate(f"blocks of {h} x {w}, unrolled", form))
    if float(mask.mean()) <= MOST_SINGLE:
        single = Single(to_bcsr({"w": kernel}, {"w": mask})["w"])
        found.append(Candidate("single weights, BCSR", single))
    return pattern_of(mask), found


def of_window(
    kernel: jax.Array, mask: np.ndarray, window: tuple[int, ...]
) -> tuple[str, list[Candidate]]:
    """The same of the kernel of a convolution, (window * channels, out)."""
    found = []
    n_in, n_out = kernel.shape
    of_taps = mask.reshape(math.prod(window), -1, n_out)
    channels, columns = np.flatnonzero(of_taps.any((0, 2))), np.flatnonzero(of_taps.any((0, 1)))
    used = len(channels) * len(columns) / math.prod(of_taps.shape[1:])
    if 0 < used <= MOST:
        values = jnp.where(mask, kernel, 0).reshape(*window, *of_taps.shape[1:])
        values = values[..., channels, :][..., columns]
        places = tuple(channels.tolist()), tuple(columns.tolist())
        form = CutWindow(values, *places, n_out)
        found.append(Candidate("cut to used inputs and outputs", form))
    for h, w in block_sizes(mask):
        blocks = to_blocks(kernel, jnp.asarray(mask), h, w)
        if int((np.asarray(blocks.inputs) * h < n_in).sum()) <= MOST_SHIFTED:
            shifted = Shifted(blocks.values, _places(blocks), (n_in, n_out))
            found.append(Candidate(f"blocks of {h} x {w}, shifted slices", shifted))
    whole = used <= 1.1 * float(mask.mean())
    return "inputs and outputs" if whole else pattern_of(mask), found


def _of_stack(kernels: jax.Array, masks: np.ndarray) -> tuple[str, list[Candidate]]:
    """As many slots in each layer, so that one program runs all of them."""
    found = []
    for h, w in block_sizes(masks):
        slots = max(int(counts.max()) for counts in _counts(masks, h, w))
        made = [
            to_blocks(kernel, jnp.asarray(mask), h, w, slots)
            for kernel, mask in zip(kernels, masks, strict=True)
        ]
        found += _gathered(jax.tree.map(lambda *layers: jnp.stack(layers), *made))
    return pattern_of(masks), found


def _gathered(blocks: Blocks) -> list[Candidate]:
    of = f"blocks of {blocks.values.shape[-2]} x {blocks.values.shape[-1]}"
    return [
        Candidate(f"{of}, by rows", ByRows(blocks)),
        Candidate(f"{of}, by columns", ByColumns(blocks)),
    ]


def _places(blocks: Blocks) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, np.asarray(blocks.inputs).tolist()))


# --- the pattern of a mask ------------------------------------------------------------------------


def pattern_of(mask: np.ndarray) -> str:
    """What a mask keeps together, in words."""
    density, sizes = float(mask.mean()), block_sizes(mask)
    used = mask.any(-1).sum() * mask.any(-2).sum() / mask.size if mask.ndim == 2 else math.inf
    if used <= 1.1 * density:
        return "inputs and outputs"
    if sizes and covered(mask, *sizes[0]) <= 1.05 * density:
        h, w = sizes[0]
        return f"inputs shared by {w} outputs" if h == 1 else f"blocks of {h} x {w}"
    return "single weights"


def block_sizes(mask: np.ndarray) -> list[tuple[int, int]]:
    """At most two sizes of blocks for a mask: what keeps least, and the next larger one."""
    fits = []
    for h, w in SIZES:
        share = kept(mask, h, w)
        if h <= mask.shape[-2] and w <= mask.shape[-1] and share <= MOST:
            fits.append((round(share / max(float(mask.mean()), 1e-9), 1), -h * w, (h, w)))
    sizes = [size for _, _, size in sorted(fits)]
    larger = [size for size in sizes if math.prod(size) > math.prod(sizes[0])]
    return [*sizes[:1], *larger[:1]]


def covered(mask: np.ndarray, h: int, w: int) -> float:
    """The share of the blocks that have a kept weight."""
    n = -(-mask.shape[-2] // h)
    return float(np.mean([counts.mean() / n for counts in _counts(mask, h, w)]))


def kept(mask: np.ndarray, h: int, w: int) -> float:
    """The share of the weights that the slots of blocks hold, empty slots included."""
    counts = _counts(mask, h, w)
    slots = max(int(each.max(initial=0)) for each in counts)
    return float(slots * sum(map(len, counts)) * h * w / mask.size)


def _counts(mask: np.ndarray, h: int, w: int) -> list[np.ndarray]:
    """For each layer of a mask, of one layer or a stack, the blocks that its outputs keep."""
    layers = mask.reshape(-1, *mask.shape[-2:])
    return [np.asarray(kept_blocks(jnp.asarray(layer), h, w)).sum(1) for layer in layers]
