"""`prune_in_order`: one pass through a program that prunes each product as it reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.base import Masks, Params, arguments, is_known
from jaxprune.calibration.method import Inputs, Method
from jaxprune.calibration.reading import Changing, Leaf, Product
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import kernels
from jaxprune.trees import named_leaves, quoted, shape_only, with_leaves


def prune_in_order(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    method: Method | Mapping[str, Method],
    prunable: Callable[[Params], Any] = kernels,
) -> tuple[Params, Masks]:
    """The params after one pass of a method through the products of a function, and their masks.

    The program of `fn` is evaluated equation by equation, each over all batches. At each product of
    a leaf with anything else the leaf is pruned, with the operand that the pruned leaves before it
    give; the product goes on with the pruned leaf. This is the order of Wanda and of SparseGPT, but
    a layer of a block also sees the layers before it in the block pruned, where the authors' code
    prunes a block at once. A leaf that several products read is pruned at the first of them. The
    layers of a scan come one after the other.

    All batches are in memory at once. `jax.jit` compiles the pass.

    Args:
      fn: `(params, *inputs) -> Any`; as it is evaluated, without dropout.
      params: pytree of arrays.
      batches: inputs of `fn`, all of one shape; a tuple is several arguments.
      method: such as `wanda(0.5)`; or a method for each leaf by its path, as
        `{'block_0/mlp/up/kernel': wanda(0.7), ...}`, where layers differ in sparsity.
      prunable: `params -> tree` with None where a leaf is never pruned.

    Returns:
      params of the same dtypes, and masks, bool, True = kept, None where a leaf is never pruned.

    Raises:
      ValueError: without a batch, for batches of several shapes, for methods by path that are for
        other leaves than `prunable` gives, if a leaf is in no product that is reached (as within
        `while_loop` and `cond`) or in a convolution of groups, if inputs of a product are nan or
        inf (where that is known: not under `jit`), and what the method raises.

    >>> import jax, jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[3., -1.], [1., 2.], [-2., .5], [.1, 1.]])}
    >>> x = jnp.array([[1., 1., 0., 9.]])
    >>> fn = lambda params, x: x @ params['kernel']
    >>> jp.calibration.prune_in_order(fn, params, [x], jp.calibration.wanda(0.5))[0]['kernel']
    Array([[3., 0.],
           [1., 2.],
           [0., 0.],
           [0., 1.]], dtype=float32)
    """
    inputs = alike("prune_in_order", batches)
    run = _Pruning(params, folded(prunable(params)), method)
    run.run(fn, inputs)
    return run.result()


class _Pruning(Changing):
    """The params on the way, and the parts of them that are pruned."""

    def __init__(self, params: Params, wanted: Any, method: Method | Mapping[str, Method]):
        self.masks = {name: jnp.ones_like(w) for name, w in named_leaves(wanted) if w is not None}
        super().__init__("prune_in_order", params, set(self.masks))
        by_name: Any = method if isinstance(method, Mapping) else dict.fromkeys(self.masks, method)
        self.methods: Mapping[str, Method] = by_name
        extra, missing = (
            [(name, None) for name in sorted(a.keys() - b.keys())]
            for a, b in ((self.methods, self.masks), (self.masks, self.methods))
        )
        if extra or missing:
            which = (
                f"{quoted(missing)} has no method"
                if missing
                else f"{quoted(extra)} is not to be pruned"
            )
            raise ValueError(
                f"prune_in_order: {which}. Give one method, or one for each leaf of "
                "prunable(params), by its path."
            )

    def change(self, leaf: Leaf, product: Product) -> None:
        """Prunes the leaf."""
        weight, pruned = leaf.get(self.now[leaf.name]), []
        for matrix, inputs in zip(product.matrices, product.inputs, strict=True):
            check_finite("prune_in_order", leaf.name, inputs, len(inputs.batches))
            try:
                pruned.append(self.methods[leaf.name](matrix.astype(jnp.float32), inputs))
            except ValueError as error:
                raise ValueError(f"prune_in_order: '{leaf.name}': {error}") from error
        new, mask = (product.back(jnp.stack(each)) for each in zip(*pruned, strict=True))
        self.masks[leaf.name] = leaf.put(self.masks[leaf.name], mask.astype(weight.dtype))
        self.now[leaf.name] = leaf.put(self.now[leaf.name], new.astype(weight.dtype))

    def result(self) -> tuple[Params, Masks]:
        """The pruned params and their masks."""
        params = self.changed("Exclude them with prunable=jp.matching(exclude=[...]).")
        masks = [self.masks[name] != 0 if name in self.masks else None for name in self.now]
        return params, with_leaves(params, masks)


def alike(what: str, batches: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The arguments of each batch; ValueError without a batch, and for several shapes or dtypes."""
    inputs = list(arguments(what, batches))
    first, *others = (jax.tree.map(shape_only, batch) for batch in inputs)
    for i, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"{what}: batch {i} is {_in_words(other)}, and batch 0 is "
                f"{_in_words(first)}; all batches have one shape. Leave out the last, smaller one."
            )
    return inputs


def _in_words(batch: Any) -> str:
    return ", ".join(f"{x.dtype} {x.shape}" for x in jax.tree.leaves(batch))


def check_finite(what: str, name: str, inputs: Inputs, count: int, first: int = 0) -> None:
    """Raises ValueError if inputs of a leaf, of batches i, i + count, ..., are nan or inf.

    `first` is the number of the first batch.
    """
    for i, x in enumerate(inputs.batches):
        if is_known(x) and not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"{what}: the inputs of '{name}' have nan or inf in batch {first + i % count}. "
                "Look at the batch, and at the params before this product."
            )
