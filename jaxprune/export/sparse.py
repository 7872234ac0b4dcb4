"""Trees of JAX's own sparse arrays: BCOO for any kernel, transposed BCSR for matrices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from jaxprune.base import Masks, Params, is_known
from jaxprune.masks import like
from jaxprune.trees import named_leaves, with_leaves


def to_bcoo(params: Params, masks: Masks) -> Any:
    """`params` with a `BCOO` in place of every leaf that has a mask.

    It stores exactly the weights that the mask keeps, also those that are 0, in the order of the
    array. Their number is not static under `jit`: call it outside.

    Raises:
      ValueError: if masks and params do not fit, or under `jit`.
    """
    return _converted("to_bcoo", params, masks, _bcoo)


def to_bcsr(params: Params, masks: Masks) -> Any:
    """`params` with a `TransposedBCSR` in place of every matrix (in, out) that has a mask.

    `x @ kernel` and `sparse_matmul(x, kernel)` multiply, as flax writes it. Other leaves stay as
    they are; a kernel of another rank stays dense, with zeros where it is masked.

    It pays on a CPU for batches of 32 or more, from a sparsity of 90 to 95 %. A batch of one is
    slower than the dense product.

    Raises:
      ValueError: if masks and params do not fit, or under `jit`.
    """
    return _converted("to_bcsr", params, masks, _bcsr)


def sparse_matmul(x: jax.Array, kernel: Any) -> jax.Array:
    """`x @ kernel`, dense (..., out), of a kernel that is dense or sparse.

    A sparse kernel is of `to_bcsr` or `to_bcoo`, or a BCSR or BCOO of JAX. The product jits and
    vmaps. It is differentiable in `x` and in the kernel's values. `jax.export` has to be told
    that the product of a BCSR calls a function of JAX: `DisabledSafetyCheck.custom_call`.

    Args:
      x: dense (..., in).
      kernel: (in, out).

    Raises:
      ValueError: if the shapes do not fit.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'kernel': jnp.array([[1., 2.], [3., 4.]])}
    >>> kernel = jp.export.to_bcsr(params, {'kernel': params['kernel'] > 1})['kernel']
    >>> jp.export.sparse_matmul(jnp.ones((1, 2)), kernel)
    Array([[3., 6.]], dtype=float32)
    """
    shape = tuple(kernel.shape)
    if len(shape) != 2 or not jnp.ndim(x) or jnp.shape(x)[-1] != shape[0]:
        raise ValueError(
            f"sparse_matmul: x is (..., in) and the kernel (in, out); got {jnp.shape(x)} and "
            f"{shape}. Flatten a kernel of another rank before it is made sparse."
        )
    rows = jnp.reshape(x, (-1, shape[0]))
    if not len(rows):  # jax 0.10 multiplies one row there
        return jnp.zeros((*jnp.shape(x)[:-1], shape[1]), jnp.result_type(x, kernel.dtype))
    if isinstance(kernel, TransposedBCSR):
        product = (kernel.T @ rows.T).T
    else:  # JAX has no product with a BCSR on the right
        product = rows @ (kernel.to_bcoo() if isinstance(kernel, BCSR) else kernel)
    return product.reshape(*jnp.shape(x)[:-1], shape[1])


@jax.tree_util.register_pytree_node_class
class TransposedBCSR:
    """A sparse kernel (in, out) that is stored by its outputs: its transpose is a BCSR of JAX.

    JAX multiplies a BCSR on the left only. `x @ kernel` is the transpose of `kernel.T @ x.T`.

    Attributes:
      T: BCSR (out, in).
      shape, dtype: of the kernel.
      data: the stored weights, output after output.
      nse: the number of stored weights.
    """

    __array_ufunc__ = None  # a numpy array on the left leaves the product to `__rmatmul__`

    def __init__(self, transposed: BCSR):
        self.T = transposed

    shape = property(lambda self: self.T.shape[::-1])
    dtype = property(lambda self: self.T.dtype)
    data = property(lambda self: self.T.data)
    nse = property(lambda self: self.T.nse)

    def todense(self) -> jax.Array:
        """The kernel (in, out), with zeros."""
        return self.T.todense().T

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        return sparse_matmul(x, self)

    def __repr__(self) -> str:
        return f"TransposedBCSR({self.dtype}{list(self.shape)}, nse={self.nse})"

    def tree_flatten(self) -> tuple[tuple[BCSR], None]:
        return (self.T,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[BCSR]) -> TransposedBCSR:
        return cls(*children)


def to_dense(tree: Any) -> Params:
    """The tree with every sparse array made dense."""
    is_sparse = lambda x: isinstance(x, (BCOO, BCSR, TransposedBCSR))
    return jax.tree.map(lambda x: x.todense() if is_sparse(x) else x, tree, is_leaf=is_sparse)


def _converted(what: str, params: Params, masks: Masks, convert: Any) -> Any:
    aligned = like(masks, params)
    leaves = []
    for (_, w), (leaf_name, mask) in zip(named_leaves(params), named_leaves(aligned), strict=True):
        if not is_known((w, mask)):
            raise ValueError(
                f"{what}: how many weights '{leaf_name}' keeps must be known. Call {what} outside "
                "of jit and vmap; its result may go into them."
            )
        leaves.append(w if mask is None else convert(w, np.asarray(mask)))
    return with_leaves(params, leaves)


def _bcoo(w: jax.Array, mask: np.ndarray) -> BCOO:
    indices = np.argwhere(mask).astype(np.int32)
    values = jnp.asarray(w)[tuple(indices.T)]
    return BCOO(
        (values, jnp.asarray(indices)), shape=w.shape, indices_sorted=True, unique_indices=True
    )


def _bcsr(w: jax.Array, mask: np.ndarray) -> Any:
    if np.ndim(w) != 2:
        return jnp.where(mask, w, jnp.zeros((), w.dtype))
    outputs, inputs = np.nonzero(mask.T)
    starts = np.concatenate([[0], np.cumsum(mask.sum(0))]).astype(np.int32)
    values = jnp.asarray(w)[inputs, outputs]
    parts = values, jnp.asarray(inputs.astype(np.int32)), jnp.asarray(starts)
    return TransposedBCSR(
        BCSR(parts, shape=w.shape[::-1], indices_sorted=True, unique_indices=True)
    )
