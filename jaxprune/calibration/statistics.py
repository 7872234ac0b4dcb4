"""`statistics`: what the inputs of each weight matrix are, on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, arguments, is_known
from jaxprune.calibration.reading import Leaf, Product, Reading
from jaxprune.prunable.layers import folded
from jaxprune.prunable.rules import kernels
from jaxprune.trees import named_leaves, with_leaves


class Statistics(NamedTuple):
    """The inputs of a leaf (inputs, outputs), over all rows of all batches.

    A leaf that a scan steps over has an axis of layers in front of each array, and one of experts
    has an axis of experts. The inputs of a convolution are its patches: window, then channels.

    Attributes:
      rows: int, the number of rows, of all products that read the leaf.
      mean: float32 (inputs,).
      square_norms: float32 (inputs,), the sum of squares of each input.
      second_moment: float32 (inputs, inputs), X'X; None unless asked for.
    """

    rows: int
    mean: jax.Array
    square_norms: jax.Array
    second_moment: jax.Array | None

    @property
    def norms(self) -> jax.Array:
        """The norm of each input over all rows, float32 (inputs,)."""
        return jnp.sqrt(self.square_norms)


def statistics(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    second_moment: bool = False,
    prunable: Callable[[Params], Any] = kernels,
) -> Any:
    """The `Statistics` of what each leaf is multiplied with, by the program of a function.

    One pass for each batch, jitted; a batch of another shape compiles anew. A leaf that several
    products read has the sum of all. Leaves that read the same inputs, such as queries, keys and
    values, share their arrays. Under an outer `jax.jit`, nan and inf raise no error.

    Args:
      fn: `(params, *inputs) -> Any`; as it is evaluated, without dropout.
      params: pytree of arrays.
      batches: inputs of `fn`; a tuple is several arguments.
      second_moment: whether X'X is wanted, which takes inputs^2 numbers.
      prunable: `params -> tree` with None where a leaf does not count.

    Returns:
      A tree like the params, with None where a leaf does not count or no product reads it: an
      embedding is looked up by integers, and a branch of `cond` or a `while_loop` is not entered.

    Raises:
      ValueError: without a batch, for a convolution of groups, for a leaf whose parts have inputs
        of different numbers, and for inputs that are nan or inf; it names the leaf and the batch.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params, x = {'kernel': jnp.ones((2, 3))}, jnp.array([[1., 2.], [3., -2.]])
    >>> fn = lambda params, x: x @ params['kernel']
    >>> of = jp.calibration.statistics(fn, params, [x], second_moment=True)['kernel']
    >>> of.rows, of.mean.tolist(), of.square_norms.tolist(), of.second_moment.tolist()
    (2, [2.0, 0.0], [10.0, 8.0], [[10.0, -4.0], [-4.0, 8.0]])

    Reference: Sun et al., 2024, A Simple and Effective Pruning Approach for Large Language Models
    (the norms); Frantar and Alistarh, 2023, SparseGPT (the second moment).
    """
    rows: dict[Any, np.ndarray] = {}  # shapes of a batch -> rows by place in sums
    names = {name for name, leaf in named_leaves(folded(prunable(params))) if leaf is not None}
    places: dict[str, dict[tuple[int, ...], list[int]]] = {}  # name -> layer -> places in sums

    @jax.jit
    def one(params: Params, batch: tuple[Any, ...]) -> list[Any]:
        reading = _Sums(params, names, second_moment)
        reading.run(fn, [batch])
        places.clear()
        places.update(reading.places)
        rows[_shapes(batch)] = np.asarray(reading.rows)
        return reading.sums

    total: Any = None
    counts = np.zeros((), int)
    for i, inputs in enumerate(arguments("statistics", batches)):
        sums = one(params, inputs)
        counts = counts + rows[_shapes(inputs)]
        _check_finite(sums, places, i)
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    made: dict[Any, Statistics] = {}

    def of(name: str) -> Statistics | None:
        by_layer = places.get(name)
        if by_layer is None:
            return None
        key = tuple((layer, *by_layer[layer]) for layer in sorted(by_layer))
        if key not in made:
            layers = [by_layer[at] for at in sorted(by_layer)]
            many = max(sum(int(counts[i]) for i in layer) for layer in layers)  # alike in all
            made[key] = _joined(name, many, [[total[i] for i in layer] for layer in layers])
        return made[key]

    return with_leaves(params, [of(name) for name, _ in named_leaves(params)])


class _Sums(Reading):
    """Sums over the rows of a batch, one for each source of inputs."""

    def __init__(self, params: Params, wanted: set[str], second_moment: bool):
        super().__init__("statistics", params, wanted)
        self.second_moment = second_moment
        self.sums: list[Any] = []
        self.rows: list[int] = []
        self.places: dict[str, dict[tuple[int, ...], list[int]]] = {}
        self.of_source: dict[Any, int] = {}

    def met(self, leaf: Leaf, product: Product) -> None:
        if product.source not in self.of_source:
            self.of_source[product.source] = len(self.sums)
            each = [self.summed(inputs) for inputs in product.inputs]
            alone = len(each) == 1
            self.rows.append(product.inputs[0].rows)
            self.sums.append(each[0] if alone else jax.tree.map(lambda *x: jnp.stack(x), *each))
        layer = tuple(place for place in leaf.part if isinstance(place, int))
        of_leaf = self.places.setdefault(leaf.name, {})
        of_leaf.setdefault(layer, []).append(self.of_source[product.source])

    def summed(self, inputs: Any) -> dict[str, Any]:
        (x,) = inputs.batches
        sums = {"total": x.astype(jnp.float32).sum(0), "squares": inputs.square_norms()}
        return sums | ({"moment": inputs.second_moment()} if self.second_moment else {})


def _joined(name: str, rows: int, layers: list[list[Any]]) -> Statistics:
    """The sums of a leaf as its statistics; several layers are stacked."""
    sizes = {x["total"].shape for places in layers for x in places}
    if len(sizes) > 1:
        raise ValueError(
            f"statistics: parts of '{name}' are multiplied with inputs of shapes "
            f"{', '.join(map(str, sorted(sizes)))}; exclude it by prunable, or split the leaf."
        )
    added = [jax.tree.map(lambda *x: sum(x[1:], x[0]), *places) for places in layers]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *added) if len(added) > 1 else added[0]
    return Statistics(rows, stack["total"] / rows, stack["squares"], stack.get("moment"))


def _check_finite(sums: list[Any], places: dict[str, Any], batch: int) -> None:
    if not all(is_known(x["squares"]) for x in sums):  # under jit
        return
    finite = jax.device_get([jnp.isfinite(x["squares"]).all() for x in sums])
    for name, by_layer in places.items():
        if not all(finite[i] for at in by_layer.values() for i in at):
            raise ValueError(
                f"statistics: the inputs of '{name}' have nan or inf in batch {batch}, or squares "
                "beyond float32. Look at the batch, and at the params before this product."
            )


def _shapes(batch: Any) -> Any:
    return jax.tree.structure(batch), tuple(map(np.shape, jax.tree.leaves(batch)))
