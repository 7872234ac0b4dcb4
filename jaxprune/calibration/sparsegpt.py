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
        weight, masks, outputs = jnp.where(dead[:, None], 0, weight), [], weight.shape[1]
        for start in range(0, len(weight), step):
            stop = min(start + step, len(weight))
            now, later = slice(start, stop), slice(stop, None)
            if isinstance(sparsity, tuple):
                mask, groups = None, m
            else:
                before, after = (round(sparsity * end * outputs) for end in (start, stop))
                mask, groups = lowest_go(weight[now], upper[now, now], after - before), 1
            new, lost, mask = visited(weight[now], upper[now, now], mask, sparsity, groups)
            weight = weight.at[now].set(new)
            moved = jnp.matmul(upper[now, later].T, lost, precision=lax.Precision.HIGHEST)
            weight = weight.at[later].add(-moved)
            masks.append(mask)
        return weight, jnp.concatenate(masks)

    return method


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
    weight: jax.Array, upper: jax.Array, mask: jax.Array | None, sparsity: Target, group: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(the weights, what was lost, the mask) of a block (inputs, outputs), after all its inputs.

    Without a mask the mask of each `group` of inputs is chosen when its first is reached.
    """
    known = jnp.zeros(weight.shape, bool) if mask is None else mask

    def one(g: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple:
        weight, lost, known = carry
        first = g * group
        if mask is None:
            rows = lax.dynamic_slice_in_dim(weight, first, group)
            root = lax.dynamic_slice_in_dim(jnp.diag(upper), first, group)
            chosen = best(jnp.square(rows / root[:, None]), sparsity)
            known = lax.dynamic_update_slice_in_dim(known, chosen, first, 0)
        for i in range(group):
            at = first + i
            error = jnp.where(known[at], 0, weight[at]) / upper[at, at]
            weight = weight - upper[at][:, None] * error[None]
            lost = lost.at[at].set(error)
        return weight, lost, known

    begin = weight, jnp.zeros_like(weight), known
    weight, lost, known = lax.fori_loop(0, len(weight) // group, one, begin)
    return jnp.where(known, weight, 0), lost, known
