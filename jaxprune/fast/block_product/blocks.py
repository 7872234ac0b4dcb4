"""The blocks of a kernel that a mask keeps, and the kernel again."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """The blocks of a kernel (in, out): as many slots for each block of outputs.

    Block (i, j) of the kernel is rows i h to (i + 1) h and columns j w to (j + 1) w. Where h or w
    does not divide its axis, the last blocks reach over the edge and are zero there.

    Attributes:
      values: (blocks of outputs, slots, h, w), float.
      inputs: int32 (blocks of outputs, slots): the block of inputs that each slot reads. An empty
        slot has the number of blocks of inputs, one past the last, and reads zeros.
      shape: (in, out) of the kernel; static.
    """

    values: jax.Array
    inputs: jax.Array
    shape: tuple[int, int] = field(metadata={"static": True})


def to_blocks(
    kernel: jax.Array, mask: jax.Array, h: int, w: int, slots: int | None = None
) -> Blocks:
    """The blocks (h, w) of a kernel that a mask keeps, in the order of their inputs.

    Args:
      kernel: (in, out), float.
      mask: bool, of that shape. A block that it keeps in part has zeros elsewhere.
      slots: for each block of outputs; None for the most that one of them keeps, where the mask is
        known. More are dropped where the mask is traced.

    Raises:
      ValueError: for a kernel that is no matrix, a mask of another shape, h or w that is no
        positive integer, slots that do not hold the blocks, or a traced mask without `slots`.
    """
    if not (isinstance(h, int) and isinstance(w, int) and h >= 1 and w >= 1):
        raise ValueError(
            f"to_blocks(kernel, mask, h, w) needs positive integers; got {h!r}, {w!r}."
        )
    if np.ndim(kernel) != 2 or np.shape(mask) != np.shape(kernel):
        raise ValueError(
            f"to_blocks takes a kernel (in, out) and a mask of its shape; got {np.shape(kernel)} "
            f"and {np.shape(mask)}. Reshape a kernel of another rank before."
        )
    kept = kept_blocks(mask, h, w)
    if is_known(kept):
        most = int(np.asarray(kept).sum(1).max(initial=0))
        if slots is not None and slots < most:
            raise ValueError(
                f"to_blocks: a block of outputs keeps {most} blocks, and there are {slots} slots. "
                f"Give slots={most} or more, or none; a balanced pattern needs the fewest."
            )
        slots = most if slots is None else slots
    elif slots is None:
        raise ValueError(
            "to_blocks: how many blocks the mask keeps must be known, and it is traced. Give "
            "slots=..., the most for a block of outputs, or call to_blocks outside of jit."
        )
    inputs = inputs_of(kept, slots)
    masked = jnp.where(mask, kernel, jnp.zeros((), kernel.dtype))
    of_outputs = split(masked, h, w).transpose(2, 0, 1, 3)  # (J, I, h, w)
    values = jax.vmap(lambda own, i: own.at[i].get(mode="fill", fill_value=0))(of_outputs, inputs)
    rows, columns = kernel.shape
    return Blocks(values, inputs, (rows, columns))


def check_rows(what: str, x: jax.Array, blocks: Blocks) -> None:
    """ValueError if x is no (n, in) of these blocks."""
    if x.ndim != 2 or x.shape[1] != blocks.shape[0]:
        raise ValueError(
            f"{what}: x is (n, in), here (n, {blocks.shape[0]}), for blocks of a kernel of shape "
            f"{blocks.shape}; got {x.shape}. Reshape x to its rows."
        )


def to_kernel(blocks: Blocks) -> jax.Array:
    """The kernel (in, out), with zeros between the blocks."""
    outputs, _, h, w = blocks.values.shape
    n = -(-blocks.shape[0] // h)
    empty = jnp.zeros((n, h, w), blocks.values.dtype)
    place = lambda own, i: empty.at[i].add(own, mode="drop")
    full = jax.vmap(place)(blocks.values, blocks.inputs)  # (J, I, h, w)
    full = full.transpose(1, 2, 0, 3).reshape(n * h, outputs * w)
    return full[: blocks.shape[0], : blocks.shape[1]]


def kept_blocks(mask: jax.Array, h: int, w: int) -> jax.Array:
    """Bool (blocks of outputs, blocks of inputs): those with a weight that the mask keeps."""
    return split(mask, h, w).any((1, 3)).T


def inputs_of(kept: jax.Array, slots: int) -> jax.Array:
    """int32 (blocks of outputs, slots): the blocks of inputs that are kept, in order, then n."""
    n = kept.shape[1]
    rank = jnp.where(kept, jnp.arange(n, dtype=jnp.int32)[None], n)
    return jnp.pad(jnp.sort(rank, axis=1), ((0, 0), (0, max(slots - n, 0))), constant_values=n)[
        :, :slots
    ]


def split(x: jax.Array, h: int, w: int) -> jax.Array:
    """(in, out) as (blocks of inputs, h, blocks of outputs, w), with zeros over the edge."""
    rows, columns = x.shape
    x = jnp.pad(x, ((0, -rows % h), (0, -columns % w)))
    return x.reshape(x.shape[0] // h, h, x.shape[1] // w, w)
