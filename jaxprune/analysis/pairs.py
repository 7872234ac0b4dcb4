"""All pairs of a stack of seeds: a matrix of any symmetric function, its groups and its mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.base import is_int, is_known
from jaxprune.losses import Estimate
from jaxprune.trees import HOW_TO_STACK, count_seeds


def pairwise(
    f: Callable[[Any, Any], Any], stack: Any, diagonal: float | None = None, chunk: int = 1
) -> Any:
    """`f(a, b)` of every pair of seeds: a symmetric matrix (seeds, seeds).

    Each pair is computed once, and mirrored. Outside `jax.jit` with `chunk=1`, Python calls `f`
    pair by pair; else a loop on the device goes over the pairs.

    Args:
      f: symmetric, from two trees to a scalar or a tree of them: `overlap`,
        `partial(barrier, loss)`. An array (n,) makes (seeds, seeds, n). If `f` is not symmetric,
        such as `loss_along`, `a` is the earlier seed.
      stack: params or masks, each leaf with a leading axis of seeds; None stays None.
      diagonal: the known value of `f(a, a)`, such as 0 for a barrier; None computes it.
      chunk: how many pairs are in memory at once, under `vmap`. More is faster on an accelerator
        that small networks leave idle.

    Returns:
      The tree that `f` returns, with (seeds, seeds) for each scalar.

    Raises:
      ValueError: if the leaves differ in the number of seeds (it names them), or there are fewer
        than two seeds. An error of `f` tells the pair.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.pairwise(lambda a, b: abs(a['w'] - b['w']), {'w': jnp.array([1., 2., 4.])}).tolist()
    [[0.0, 1.0, 3.0], [1.0, 0.0, 2.0], [3.0, 2.0, 0.0]]
    """
    seeds = count_seeds(stack)
    if seeds < 2:
        raise ValueError(f"pairs need at least two seeds; this stack has {seeds}. {HOW_TO_STACK}")
    if not is_int(chunk, 1):
        raise ValueError(f"pairwise: chunk is how many pairs at once, at least 1; got {chunk!r}.")
    rows, columns = np.triu_indices(seeds, k=0 if diagonal is None else 1)

    def at(i: Any, j: Any) -> Any:
        return f(_take(stack, i), _take(stack, j))

    if not is_known(stack):
        values = lax.map(
            lambda ij: at(*ij), (rows, columns), batch_size=chunk if chunk > 1 else None
        )
    elif chunk == 1:
        each = [_noted(at, int(i), int(j)) for i, j in zip(rows, columns, strict=True)]
        values = jax.tree.map(lambda *scalars: jnp.stack(scalars), *each)
    else:
        values = _in_chunks(f, stack, rows, columns, chunk)

    def matrix(upper: jax.Array) -> jax.Array:
        shape = seeds, seeds, *upper.shape[1:]
        dtype = upper.dtype if diagonal is None else jnp.result_type(upper, diagonal)
        square = jnp.full(shape, 0 if diagonal is None else diagonal, dtype)
        return square.at[rows, columns].set(upper).at[columns, rows].set(upper)

    return jax.tree.map(matrix, values)


def connected_components(matrix: Any, threshold: float) -> jax.Array:
    """Labels of the groups of seeds that are joined, directly or through others: int (seeds,).

    Two seeds are joined if their entry is less than `threshold`; nan joins nothing. For overlaps,
    where more is nearer, give `-overlaps` and `-threshold`. Groups are numbered from 0 in the order
    of their first seed.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> jp.analysis.connected_components(jnp.array([[0, 9, 1], [9, 0, 9], [1, 9, 0]]), 2).tolist()
    [0, 1, 0]
    """
    matrix = _square(matrix)
    seeds = len(matrix)
    reach = (jnp.minimum(matrix, matrix.T) < threshold) | jnp.eye(seeds, dtype=bool)
    for _ in range(seeds.bit_length()):  # paths twice as long each time
        reach = (reach.astype(jnp.int32) @ reach.astype(jnp.int32)) > 0
    first = jnp.argmax(reach, axis=1)
    return (jnp.cumsum(first == jnp.arange(seeds)) - 1)[first]


def jackknife(matrix: Any) -> Estimate:
    """The mean over pairs and its standard error, by leaving one seed out: pairs share seeds.

        error^2 = (n - 1) / n sum_i (mean without seed i - their mean)^2

    The usual error of a mean over n(n-1)/2 pairs is too small, since pairs are not independent. The
    diagonal does not count.

    Args:
      matrix: symmetric, (seeds, seeds), at least three seeds.

    Raises:
      ValueError: if it is not square, or has fewer than three seeds.

    Reference: Efron and Stein, 1981, The Jackknife Estimate of Variance.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> mean, error = jp.analysis.jackknife(jnp.array([[0., 1., 2.], [1., 0., 3.], [2., 3., 0.]]))
    >>> print(mean, round(float(error), 4))
    2.0 1.1547
    """
    matrix = _square(matrix)
    n = len(matrix)
    if n < 3:
        raise ValueError(
            f"jackknife leaves one seed out, and a pair must remain: at least 3 seeds; got {n}."
        )
    diagonal = jnp.eye(n, dtype=bool)
    mean = jnp.where(diagonal, 0, matrix).sum() / (n * (n - 1))
    apart = jnp.where(diagonal, 0, matrix - mean)  # its sum is 0; without seed i it is -2 rows
    without = -2 * apart.sum(1) / ((n - 1) * (n - 2))
    return Estimate(mean, jnp.sqrt((n - 1) / n * jnp.sum((without - without.mean()) ** 2)))


@jax.jit
def _take(stack: Any, i: Any) -> Any:
    return jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, i, keepdims=False), stack)


def _noted(at: Callable[[Any, Any], Any], i: int, j: int) -> Any:
    try:
        return at(i, j)
    except Exception as error:
        error.add_note(f"This was for the pair of seeds ({i}, {j}).")
        raise


def _in_chunks(f: Any, stack: Any, rows: np.ndarray, columns: np.ndarray, chunk: int) -> Any:
    """`f` of all pairs, `chunk` at a time; the last chunk is filled up with its last pair."""
    of_pairs = jax.jit(
        lambda stack, i, j: jax.vmap(lambda i, j: f(_take(stack, i), _take(stack, j)))(i, j)
    )
    chunk = min(chunk, len(rows))
    padded = [np.pad(indices, (0, -len(rows) % chunk), mode="edge") for indices in (rows, columns)]
    each = [
        of_pairs(stack, padded[0][start : start + chunk], padded[1][start : start + chunk])
        for start in range(0, len(rows), chunk)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(rows)], *each)


def _square(matrix: Any) -> jax.Array:
    matrix = jnp.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"this needs one matrix (seeds, seeds), as pairwise makes it; got shape {matrix.shape}."
        )
    return matrix
