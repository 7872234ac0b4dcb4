"""Reconstruction: the weights that stay make each product of a pruned network give what it gave."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.base import Masks, Params, is_int
from jaxprune.calibration.in_order import alike, check_finite
from jaxprune.calibration.reading import Changing, Leaf, Product, Value
from jaxprune.masks import apply_masks, like
from jaxprune.trees import check_like, named_leaves, present_leaves, quoted


def reconstruct(
    fn: Callable[..., Any],
    dense: Params,
    params: Params,
    masks: Masks,
    batches: Iterable[Any],
    steps: int = 50,
    damping: float = 0.01,
) -> Params:
    """Pruned params, each leaf tuned so that its product gives what the dense network's gives.

        min_w ||X w - Y||^2 + damping mean(diag(X'X)) ||w - w_pruned||^2,   w = 0 where pruned

    X is the input of the product in the network as it is tuned so far, and Y the output of the same
    product in the dense network, so a layer also makes up for the layers before it. The program of
    `fn` is evaluated equation by equation, both networks side by side, each equation over all
    batches. Each output is solved by conjugate gradients from the pruned weights. So the error of a
    product on these batches is never above the error that the pruned weights have there, up to
    rounding. A leaf that several products read is tuned at the first of them. The layers of a scan
    come one after the other.

    Zimmer et al. tune a block of a transformer at once, by AdamW. Here each product is tuned, and
    the function has no blocks.

    All batches are in memory at once, twice. `jax.jit` compiles the pass.

    Args:
      fn: `(params, *inputs) -> Any`; as it is evaluated, without dropout. Rows of the two networks
        are compared by their place, so a function that sorts or routes by its values has leaves
        that do not belong into `masks`.
      dense: params before pruning.
      params: params after pruning, alike.
      masks: bool, True = kept, None where a leaf does not change: from `prune_in_order`.
      batches: inputs of `fn`, all of one shape; a tuple is several arguments.
      steps: of conjugate gradients, at most; as many as inputs are exact.
      damping: the pull to the pruned weights, as a share of the mean square of inputs; 0 is least
        squares.

    Returns:
      params of the same dtypes, exactly 0 where a mask is False.

    Raises:
      ValueError: without a batch, for batches of several shapes, for trees that differ, if a leaf
        with a mask is in no product that is reached (as within `while_loop` and `cond`) or in a
        convolution of groups, for steps below 1 and a damping below 0, and if inputs of a product
        are nan or inf (where that is known: not under `jit`).

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> x = jnp.array([[1., 0., 1.], [0., 1., 1.], [1., 1., 0.], [2., 0., 0.]])
    >>> dense, masks = {'w': jnp.array([[.5], [.1], [-.4]])}, {'w': jnp.array([[1], [0], [1]]) > 0}
    >>> fn, params = lambda params, x: x @ params['w'], jp.apply_masks(dense, masks)
    >>> tuned = jp.calibration.reconstruct(fn, dense, params, masks, [x], damping=0)
    >>> [round(float(w), 2) for w in tuned['w'][:, 0]]
    [0.51, 0.0, -0.35]

    Reference: Zimmer et al., 2023, PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs.
    """
    if not is_int(steps, 1):
        raise ValueError(f"reconstruct: steps is a whole number, at least 1; got {steps!r}.")
    if not damping >= 0:
        raise ValueError(f"reconstruct: damping is a number, 0 or more; got {damping}.")
    inputs = alike("reconstruct", batches)
    check_like("reconstruct: dense", dense, params)
    masks = like(masks, params)
    if gates := [pair for pair in present_leaves(masks) if pair[1].dtype != bool]:
        raise ValueError(
            f"reconstruct: masks are bool, True = kept; {quoted(gates)} of dtype "
            f"{gates[0][1].dtype}. Gates become masks by a threshold: gate > 0."
        )
    solve = partial(solved, steps=steps, damping=damping)
    run = _Tuning(dense, apply_masks(params, masks), masks, len(inputs), solve)
    run.run(fn, inputs + inputs)
    return run.changed("Give them None in place of a mask.")


class _Tuning(Changing):
    """The params on the way. Of all batches the first half sees them, the second half `dense`."""

    def __init__(self, dense: Params, params: Params, masks: Any, half: int, solve: Callable):
        self.masks = dict(present_leaves(masks))
        super().__init__("reconstruct", params, set(self.masks))
        self.dense, self.half, self.solve = dict(named_leaves(dense)), half, solve

    def read(self, value: Value) -> tuple[Any, ...]:
        """The arrays of a value; a leaf is one array in each network."""
        if value.leaf is None or value.batches:
            return value.batches
        now, dense = (value.leaf.get(of[value.leaf.name]) for of in (self.now, self.dense))
        return (now,) * self.half + (dense,) * self.half

    def change(self, leaf: Leaf, product: Product) -> None:
        """Tunes the leaf."""
        of = lambda leaves: product.forth(leaf.get(leaves[leaf.name]))
        tuned = []
        for *matrices, inputs in zip(
            product.matrices, of(self.dense), of(self.masks), product.inputs, strict=True
        ):
            check_finite("reconstruct", leaf.name, inputs, self.half)
            xs = inputs.batches
            pairs = zip(xs[: self.half], xs[-self.half :], strict=True)
            moments = [_moments(x, other, matrices[1]) for x, other in pairs]
            tuned.append(self.solve(*map(sum, zip(*moments, strict=True)), *matrices[::2]))
        weight = leaf.get(self.now[leaf.name])
        new = product.back(jnp.stack(tuned)).astype(weight.dtype)
        self.now[leaf.name] = leaf.put(self.now[leaf.name], new)


@jax.jit
def _moments(x: jax.Array, other: jax.Array, dense: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X'X (inputs, inputs) and X'Y (inputs, outputs), Y of the dense network; float32."""
    x, other, dense = (a.astype(jnp.float32) for a in (x, other, dense))
    dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return dot(x.T, x), dot(x.T, dot(other, dense))


@partial(jax.jit, static_argnames="steps")
def solved(
    moment: jax.Array,
    target: jax.Array,
    weight: jax.Array,
    mask: jax.Array,
    steps: int,
    damping: float,
) -> jax.Array:
    """The weights (inputs, outputs) of least error under a mask, by conjugate gradients.

    Args:
      moment: X'X, (inputs, inputs).
      target: X'Y, (inputs, outputs).
      weight: where to start, zero where the mask is False.
    """
    start = weight.astype(jnp.float32)
    dot = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    ridge = damping * jnp.mean(jnp.diag(moment))
    scale = jnp.diag(moment)[:, None] + ridge
    scale = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    times = lambda w: jnp.where(mask, dot(moment, w) + ridge * w, 0)
    by_output = lambda x: x.sum(0, keepdims=True)  # (1, outputs)
    ratio = lambda a, b: jnp.where((a > 0) & (b > 0), a / jnp.where(b > 0, b, 1), 0)

    residual = jnp.where(mask, target - dot(moment, start), 0)
    way = scale * residual
    # below it a residual is rounding, and following it may lead anywhere where X'X is singular
    terms = jnp.abs(target) + dot(jnp.abs(moment), jnp.abs(start))
    noise = by_output(scale * jnp.square(8 * jnp.finfo(jnp.float32).eps * terms))

    def step(_: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        change, residual, way, square = carry
        curved = times(way)
        along = jnp.where(square > noise, ratio(square, by_output(way * curved)), 0)
        change, residual = change + along * way, residual - along * curved
        after = by_output(residual * scale * residual)
        way = scale * residual + ratio(after, square) * way
        return change, residual, way, after

    begin = jnp.zeros_like(start), residual, way, by_output(residual * way)
    change = lax.fori_loop(0, steps, step, begin)[0]
    # what an error gains by the change; rounding may make a gain a loss
    gain = by_output(change * (2 * residual - dot(moment, change)))
    return jnp.where(mask & (gain > 0), start + change, start)
