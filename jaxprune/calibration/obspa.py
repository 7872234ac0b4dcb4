"""OBSPA: neurons leave, and the weights that read the others make up for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import cho_solve, cholesky

from jaxprune.base import Params, arguments
from jaxprune.calibration.in_order import check_finite
from jaxprune.calibration.reading import PLACES, Leaf, Product, Reading, Value
from jaxprune.coupling.structure import Structure
from jaxprune.masks import apply_masks
from jaxprune.programs.interpret import programs
from jaxprune.programs.primitives import Side, sides
from jaxprune.structured.check import check_all
from jaxprune.structured.kept import KeptLike, masks
from jaxprune.trees import named_leaves, with_leaves


def obspa(
    structure: Structure,
    params: Params,
    kept: KeptLike,
    batches: Iterable[Any],
    damping: float = 0.01,
) -> Params:
    """The params for `compact`, after the update of what reads the pruned neurons.

        params = obspa(structure, params, kept, batches)
        small = compact(structure, params, kept)

    A weight matrix W (inputs, outputs) that reads pruned neurons loses the inputs Q and keeps K:

        H = X'X / rows + damping * mean(diag(H)) I
        W[K] += H[K, K]^-1 H[K, Q] W[Q]        = W[K] - (H^-1)[K, Q] ((H^-1)[Q, Q])^-1 W[Q]

    The new weights have the least squared error of X W, of all weights without Q, up to the
    damping. X are the inputs before anything is pruned, and all matrices are updated alike. A leaf
    that several products read has the sum of their H. A leaf does not change, except for what is
    pruned, where it is also read otherwise: a table of tokens that is the last layer too, a kernel
    that two products read along different axes, and a convolution of groups.

    Args:
      structure: of `analyze`; its function is evaluated, as it was read.
      params: all the params that were analyzed.
      kept: bool (size,) by group, True = kept, not traced, as of `pick`; or a `Removal`.
      batches: inputs of the function, a tuple is several arguments; of noise, where there are no
        data. They may differ in their number of rows. All of a batch is in memory at once.
      damping: what is added to the diagonal, as a share of its mean; positive.

    Returns:
      params like the ones given, of the same dtypes; pruned neurons are zero.

    Raises:
      ValueError: without a batch, for a damping that is not positive, for params and `kept` that do
        not fit the structure, and for inputs of a product that are nan or inf.

    Reference: Wang et al., 2024, Structurally Prune Anything: Any Architecture, Any Framework, Any
    Time; Hassibi and Stork, 1993, Second Order Derivatives for Network Pruning: Optimal Brain
    Surgeon (the update).

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.array([[1., 2.]]), 'b': jnp.array([[3.], [1.]])}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> kept = {'a': jnp.array([True, False])}
    >>> jp.calibration.obspa(structure, params, kept, [jnp.ones((4, 1))], 1e-6)['b'].round(3)
    Array([[5.],
           [0.]], dtype=float32)
    """
    if not damping > 0:
        raise ValueError(f"obspa: damping must be positive; got {damping}.")
    check_all("obspa", structure, params)
    left = masks(structure, kept)
    run = Moments("obspa", params, dict(named_leaves(left)))
    for run.batch, inputs in enumerate(arguments("obspa", batches)):
        run.run(structure.fn, [inputs])
    return apply_masks(run.updated(damping), left)


class _Read(NamedTuple):
    """A part of a leaf, whose inputs go, and what its products contract with."""

    leaf: Leaf
    product: Product  # of the first batch
    stays: np.ndarray  # bool (n, inputs)
    moment: jax.Array  # (n, inputs, inputs)
    rows: int


class Moments(Reading):
    """The second moments of the inputs of all matrices that lose inputs."""

    def __init__(self, what: str, params: Params, left: dict[str, Any]):
        super().__init__(what, params, {name for name, x in left.items() if x is not None})
        self.left = left
        self.of: dict[Any, _Read] = {}
        self.otherwise: set[str] = set()  # leaves that are not updated
        self.batch = 0

    def equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        plain = eqn.primitive.name in PLACES or sides(eqn) is not None
        enters = programs(eqn) and eqn.primitive.name not in ("cond", "while")
        if not plain and not enters:
            self.otherwise |= {value.leaf.name for value in operands if value.leaf is not None}
        return super().equation(eqn, operands)

    def product(
        self, eqn: Any, operands: list[Value], place: int, sides: tuple[Side, Side]
    ) -> None:
        groups = [eqn.params.get(f"{of}_group_count", 1) for of in ("feature", "batch")]
        if groups == [1, 1]:
            super().product(eqn, operands, place, sides)
        else:
            leaf: Any = operands[place].leaf
            self.otherwise.add(leaf.name)

    def met(self, leaf: Leaf, product: Product) -> None:
        mask = self.left[leaf.name].astype(self.now[leaf.name].dtype)
        entries = np.asarray(product.forth(leaf.get(mask))) != 0
        stays = entries.any(2)
        before = self.of.get((leaf.name, leaf.part))
        if before is not None and not np.array_equal(before.stays, stays):
            self.otherwise.add(leaf.name)  # read along different axes
            return
        if stays.all():
            moment, rows = jnp.zeros(()), 0
        else:
            for inputs in product.inputs:
                check_finite(self.what, leaf.name, inputs, 1, self.batch)
            moment = jnp.stack([inputs.second_moment() for inputs in product.inputs])
            rows = product.inputs[0].rows
        if before is not None:
            moment, rows = before.moment + moment, before.rows + rows
            product = before.product
        light = product._replace(inputs=[], source=None)
        self.of[leaf.name, leaf.part] = _Read(leaf, light, stays, moment, rows)

    def updated(self, damping: float) -> Params:
        """The params, after the update of all that may change."""
        new = dict(self.now)
        for leaf, product, stays, moment, rows in self.of.values():
            if stays.all() or leaf.name in self.otherwise:
                continue
            old = leaf.get(new[leaf.name])
            matrices = product.forth(old).astype(jnp.float32)
            one = lambda w, h, k: updated(w, h / rows, k, damping)  # noqa: B023
            made = jax.vmap(one)(matrices, moment, jnp.asarray(stays))
            new[leaf.name] = leaf.put(new[leaf.name], product.back(made).astype(old.dtype))
        return with_leaves(self.params, [new[name] for name, _ in named_leaves(self.params)])


@jax.jit
def updated(weight: jax.Array, h: jax.Array, stays: jax.Array, damping: float) -> jax.Array:
    """The matrix (inputs, outputs) without the inputs that go, float32.

    h is the second moment over rows, float32 (inputs, inputs); stays is bool (inputs,).
    """
    h, eye = damped(h, damping), jnp.eye(len(h), dtype=h.dtype)
    both = stays[:, None] & stays[None]
    gone = jnp.where(stays[:, None], 0, weight)
    product = jnp.matmul(h, gone, precision=lax.Precision.HIGHEST)
    factor = cholesky(jnp.where(both, h, eye), lower=True)
    more = cho_solve((factor, True), jnp.where(stays[:, None], product, 0))
    return jnp.where(stays[:, None], weight + more, 0)


def damped(h: jax.Array, damping: float) -> jax.Array:
    """A second moment (n, n) plus a share of its mean diagonal; plus 1 where all of it is zero."""
    size = jnp.mean(jnp.diag(h))
    return h + jnp.where(size > 0, damping * size, 1.0) * jnp.eye(len(h), dtype=h.dtype)
