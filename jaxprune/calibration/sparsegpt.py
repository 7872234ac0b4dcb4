"""SparseGPT: weights go one input after the other, and the weights that stay make up for them."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve, cholesky

from jaxprune.base import call_first
from jaxprune.calibration.method import Inputs, Method, Target, best, check_target
from jaxprune.selection.largest import largest

FEW = 8  # inputs whose rows stay in a core's cache while they update each other
Carry = tuple[jax.Array, jax.Array, jax.Array]  # weights, what was lost, mask


@call_first("jp.calibration.sparsegpt(0.5)")
def sparsegpt(sparsity: Target, block: int = 128, damping: float = 0.01) -> Method:
    """Prunes input after input; what each loses is added to the inputs that are not yet visited.

        H = 2 X'X / rows + damping * mean(diag(H)) I,    U'U = H^-1, U upper triangular
        score[i, o] = (w[i, o] / U[i, i])^2, the lowest of each block of inputs go
        for each input i in order:
          e = (w[i] - pruned(w[i])) / U[i, i];    w[j] -= U[i, j] e for all j >= i

    An input that is always zero has weights zero.

    Args:
      sparsity: the fraction of each block, over all outputs, so that `round(sparsity * size)` of
        the matrix are pruned; or (n, m), n of m consecutive inputs of each output stay, chosen when
        the first of them is reached.
      block: inputs that are compared with each other; with (n, m) it only sets the memory.
      damping: what is added to the diagonal, as a share of its mean.

    Raises:
      ValueError: for a fraction outside [0, 1), an (n, m) that can't be, a block below m, and a
        damping that is not positive.

    Reference: Frantar and Alistarh, 2023, SparseGPT: Massive Language Models Can Be Accurately
    Pruned in One-Shot. The authors' code prunes one weight more of each block.
    """
    check_target("sparsegpt", sparsity)
    m = sparsity[1] if isinstance(sparsity, tuple) else 1
    if block < m:
        raise ValueError(
            f"sparsegpt: a block has at least the {m} inputs of {sparsity}; got {block}."
        )
    if not damping > 0:
        raise ValueError(f"sparsegpt: damping must be positive; got {damping}.")
    step = block - block % m

    def method(weight: jax.Array, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        jax.eval_shape(lambda w: best(w, sparsity), weight)  # raises where m does not divide inputs
        upper, dead = factor(inputs, damping)
        rest, done = jnp.where(dead[:, None], 0, weight), []
        total, outputs = weight.shape
        for start in range(0, total, step):
            stop = min(start + step, total)
            now, later = slice(start, stop), slice(stop, None)
            part = rest[: stop - start]
            if isinstance(sparsity, tuple):
                new, lost, mask = visited(part, upper[now, now], None, *sparsity)
            else:
                before, after = (round(sparsity * end * outputs) for end in (start, stop))
                mask = lowest_go(part, upper[now, now], after - before)
                new, lost, mask = visited(part, upper[now, now], mask, None, 1)
            done.append((new, mask))
            if stop < total:
                rest = moved(rest, upper[now, later], lost)
        weights, masks = zip(*done, strict=True)
        return jnp.concatenate(weights), jnp.concatenate(masks)

    return method


@jax.jit
def moved(rest: jax.Array, upper: jax.Array, lost: jax.Array) -> jax.Array:
    """The weights after a block, which make up for what the block lost."""
    product = jnp.matmul(upper.T, lost, precision=lax.Precision.HIGHEST)
    return rest[len(lost) :] - product


@jax.jit
def factor(inputs: Inputs, damping: float) -> tuple[jax.Array, jax.Array]:
    """(U (inputs, inputs), bool (inputs,): inputs that are always zero)."""
    h = 2 * inputs.second_moment() / inputs.rows
    dead = jnp.diag(h) == 0
    h = h + jnp.diag(dead.astype(h.dtype))
    h = h + damping * jnp.mean(jnp.diag(h)) * jnp.eye(len(h), dtype=h.dtype)
    inverse = cho_solve((cholesky(h, lower=True), True), jnp.eye(len(h), dtype=h.dtype))
    return cholesky(inverse, lower=False), dead


@partial(jax.jit, static_argnums=2)
def lowest_go(weight: jax.Array, upper: jax.Array, count: int) -> jax.Array:
    """The mask of a block without the `count` lowest scores."""
    scores = jnp.square(weight / jnp.diag(upper)[:, None])
    return largest([scores], [scores.size - count])[0]


@partial(jax.jit, static_argnums=(3, 4))
def visited(
    weight: jax.Array, upper: jax.Array, mask: jax.Array | None, n: int | None, group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the weights, what was lost, the mask) of a block (inputs, outputs), after all its inputs.

    With `n` the mask, `n` of each `group` of inputs, is chosen when the first is reached. A few
    inputs at a time update each other, and then the rest of the block by one product.
    """
    size, few = len(weight), group * max(FEW // group, 1)
    more = -size % few  # zeros that lose nothing
    weight = jnp.pad(weight, ((0, more), (0, 0)))
    upper = jax.scipy.linalg.block_diag(upper, jnp.eye(more)) if more else upper
    known = jnp.zeros(weight.shape, bool)
    if mask is not None:
        known = jnp.pad(mask, ((0, more), (0, 0)), constant_values=True)
    inputs = jnp.arange(len(weight))

    def one(g: jax.Array, carry: Carry, root: jax.Array, block: jax.Array) -> Carry:
        """The next group, of the few."""
        weight, lost, known = carry
        first = g * group
        if n is not None:
            rows = lax.dynamic_slice_in_dim(weight, first, group)
            roots = lax.dynamic_slice_in_dim(root, first, group)
            chosen = n_best(jnp.square(rows / roots[:, None]), n)
            known = lax.dynamic_update_slice_in_dim(known, chosen, first, 0)
        for i in range(group):
            now = first + i
            error = jnp.where(known[now], 0, weight[now]) / root[now]
            weight = weight - block[now][:, None] * error[None]
            lost = lost.at[now].set(error)
        return weight, lost, known

    def some(turn: jax.Array, carry: Carry) -> Carry:
        """The next few inputs, and the product that updates the rest."""
        at = turn * few
        part = tuple(lax.dynamic_slice_in_dim(x, at, few) for x in carry)
        rows = lax.dynamic_slice_in_dim(upper, at, few)  # (few, inputs)
        square = lax.dynamic_slice_in_dim(rows, at, few, 1)
        step = partial(one, root=jnp.diag(square), block=square)
        part = lax.fori_loop(0, few // group, step, part)
        later = jnp.where(inputs >= at + few, rows, 0)
        product = jnp.matmul(later.T, part[1], precision=lax.Precision.HIGHEST)
        put = lambda x, new: lax.dynamic_update_slice_in_dim(x, new, at, 0)
        weight, lost, known = map(put, carry, part)
        return weight - product, lost, known

    begin = weight, jnp.zeros_like(weight), known
    weight, lost, known = (x[:size] for x in lax.fori_loop(0, len(weight) // few, some, begin))
    return jnp.where(known, weight, 0), lost, known


def n_best(scores: jax.Array, n: int) -> jax.Array:
    """The mask (m, outputs) of the n highest of each output; the first of equal ones."""
    first = jnp.arange(len(scores))[:, None]
    row = lambda i: scores[i : i + 1]
    before = lambda i: (row(i) > scores) | ((row(i) == scores) & (i < first))
    ranks = (before(i).astype(jnp.int32) for i in range(len(scores)))
    return sum(ranks, jnp.zeros(scores.shape, jnp.int32)) < n
