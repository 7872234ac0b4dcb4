"""`prune_in_order`: one pass through a program that prunes each product as it reaches it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Masks, Params, is_known
from jaxprune.calibration.matrices import kernel_matrix, matrices_of, patches, rows_of
from jaxprune.calibration.method import Inputs, Method
from jaxprune.programs.interpret import bind, programs, scan_parts, walk
from jaxprune.programs.primitives import Side, sides
from jaxprune.prunable.rules import kernels
from jaxprune.trees import named_leaves, quoted, shape_only

# equations whose results have the entries of the operand, or some of them, in other places
PLACES = (
    "reshape",
    "transpose",
    "squeeze",
    "convert_element_type",
    "slice",
    "split",
    "copy",
    "rev",
)


def prune_in_order(
    fn: Callable[..., Any],
    params: Params,
    batches: Iterable[Any],
    method: Method,
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
      method: such as `wanda(0.5)`.
      prunable: `params -> tree` with None where a leaf is never pruned.

    Returns:
      params of the same dtypes, and masks, bool, True = kept, None where a leaf is never pruned.

    Raises:
      ValueError: without a batch, for batches of several shapes, if a leaf is in no product that is
        reached (as within `while_loop` and `cond`) or in a convolution of groups, if inputs of a
        product are nan or inf (where that is known: not under `jit`), and what the method raises.

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
    inputs = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    _check_alike(inputs)
    try:
        jaxpr = jax.make_jaxpr(fn)(params, *inputs[0])
    except Exception as error:
        error.add_note("prune_in_order: the function does not take these params and this batch")
        raise
    run = _Pass(params, prunable(params), method)
    columns = zip(*(jax.tree.leaves(batch) for batch in inputs), strict=True)
    run.program(jaxpr, [*run.leaves(), *(_Value(tuple(map(jnp.asarray, x))) for x in columns)])
    return run.result()


class _Leaf(NamedTuple):
    """Entries of a leaf: which leaf, where in it, and how they are read and written."""

    name: str
    part: tuple[Any, ...]  # of a scan, a slice, a split
    get: Callable[[jax.Array], jax.Array]  # leaf -> entries
    put: Callable[[jax.Array, jax.Array], jax.Array]  # leaf, entries -> leaf


class _Value(NamedTuple):
    """A value for each batch, or one for all; and the leaf of which it has the entries."""

    batches: tuple[Any, ...]
    leaf: _Leaf | None = None


class _Pass:
    """The params on the way, and the parts of them that are pruned."""

    def __init__(self, params: Params, wanted: Any, method: Method):
        named = named_leaves(params)
        self.params, self.method = params, method
        self.now: dict[str, Any] = dict(named)
        self.masks = {name: jnp.ones_like(w) for name, w in named_leaves(wanted) if w is not None}
        self.done: set[Any] = set()

    def leaves(self) -> list[_Value]:
        """The operands of the program that are params."""
        whole = lambda name: _Leaf(name, (), lambda leaf: leaf, lambda leaf, x: x)
        return [_Value((), whole(name)) for name, x in self.now.items() if x is not None]

    def result(self) -> tuple[Params, Masks]:
        """The pruned params and their masks."""
        reached = {name for name, _ in self.done}
        if missed := [(name, None) for name in self.masks if name not in reached]:
            raise ValueError(
                f"prune_in_order reaches no product of {quoted(missed)}: the function does not "
                "read them, or reads them within cond, while_loop or another operation. Exclude "
                "them with prunable=jp.matching(exclude=[...])."
            )
        names = [name for name, _ in named_leaves(self.params)]
        structure = jax.tree.structure(self.params, is_leaf=lambda x: x is None)
        build = lambda of: jax.tree.unflatten(structure, [of(name) for name in names])
        keep = lambda name: self.masks[name] != 0 if name in self.masks else None
        return build(self.now.get), build(keep)

    def read(self, value: _Value) -> tuple[Any, ...]:
        """The arrays of a value; those of a leaf as they are now."""
        return value.batches or (value.leaf.get(self.now[value.leaf.name]),)  # type: ignore[union-attr]

    def program(self, closed: Any, operands: list[_Value]) -> list[_Value]:
        return walk(closed, operands, self.equation, lambda x, atom: _Value((x,)))

    def equation(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        kind, inner = eqn.primitive.name, programs(eqn)
        held = [value.leaf is not None for value in operands]
        if kind == "scan" and any(held):
            return self.scan(eqn, inner[0], operands)
        if inner and kind not in ("scan", "cond", "while"):
            return self.program(inner[0], operands)
        product = sides(eqn)
        if product is not None:
            prunable = [v.leaf is not None and v.leaf.name in self.masks for v in operands]
            if sum(prunable) == 1:
                self.prune(eqn, operands, prunable.index(True), product)
        if kind in PLACES and held == [True]:
            return _moved(eqn, operands[0].leaf)
        return self.bound(eqn, operands)

    def bound(self, eqn: Any, operands: list[_Value]) -> list[_Value]:
        """The results of an equation for each batch; one for all where no operand differs."""
        arrays = [self.read(value) for value in operands]
        count = max(map(len, arrays), default=1)
        of = lambda i: [x[i] if len(x) > 1 else x[0] for x in arrays]
        results = [bind(eqn, of(i)) for i in range(count)]
        return [_Value(each) for each in zip(*results, strict=True)]

    def scan(self, eqn: Any, body: Any, operands: list[_Value]) -> list[_Value]:
        """Turn after turn, so that each layer is pruned by itself."""
        consts, carry, xs = scan_parts(eqn, operands)
        turns = range(eqn.params["length"])
        made: dict[int, list[_Value]] = {}
        for turn in reversed(turns) if eqn.params["reverse"] else turns:
            results = self.program(body, [*consts, *carry, *(self.layer(x, turn) for x in xs)])
            carry, made[turn] = results[: len(carry)], results[len(carry) :]
        stacked = []
        for column in zip(*(made[turn] for turn in turns), strict=True):
            arrays = [self.read(value) for value in column]
            count = max(map(len, arrays))
            of = lambda i, arrays=arrays: [x[i] if len(x) > 1 else x[0] for x in arrays]
            stacked.append(_Value(tuple(jnp.stack(of(i)) for i in range(count))))
        return [*carry, *stacked]

    def layer(self, value: _Value, turn: int) -> _Value:
        """What a turn of a scan reads of an array that it steps over."""
        if value.leaf is None:
            return _Value(tuple(x[turn] for x in value.batches))
        name, part, get, put = value.leaf
        layer = lambda leaf: get(leaf)[turn]
        write = lambda leaf, x: put(leaf, get(leaf).at[turn].set(x))
        return _Value((), _Leaf(name, (*part, turn), layer, write))

    def prune(
        self, eqn: Any, operands: list[_Value], place: int, product: tuple[Side, Side]
    ) -> None:
        """Prunes the leaf of a product, unless it was; the product reads it afterwards."""
        leaf: Any = operands[place].leaf
        if (leaf.name, leaf.part) in self.done:
            return
        weight, others = leaf.get(self.now[leaf.name]), self.read(operands[1 - place])
        if product[place].window:
            groups = [eqn.params[f"{of}_group_count"] for of in ("feature", "batch")]
            if place != 1 or groups != [1, 1]:
                raise ValueError(
                    f"prune_in_order can't prune '{leaf.name}', a convolution of groups. Exclude "
                    "it with prunable=jp.matching(exclude=[...])."
                )
            matrices, back = kernel_matrix(weight, eqn)
            batches = [patches(x, eqn) for x in others]
        else:
            matrices, back = matrices_of(weight, product[place])
            batches = [rows_of(x, product[1 - place]) for x in others]
        found = []
        for i, matrix in enumerate(matrices):
            inputs = Inputs(tuple(x[i] for x in batches))
            _check_finite(leaf.name, inputs)
            try:
                found.append(self.method(matrix.astype(jnp.float32), inputs))
            except ValueError as error:
                raise ValueError(f"prune_in_order: '{leaf.name}': {error}") from error
        new, mask = (back(jnp.stack(each)) for each in zip(*found, strict=True))
        self.masks[leaf.name] = leaf.put(self.masks[leaf.name], mask.astype(weight.dtype))
        self.now[leaf.name] = leaf.put(self.now[leaf.name], new.astype(weight.dtype))
        self.done.add((leaf.name, leaf.part))


def _moved(eqn: Any, leaf: Any) -> list[_Value]:
    """The results of an equation that moves entries of a leaf; the way back is its transpose."""
    values = []
    for i in range(len(eqn.outvars)):
        step = lambda x, i=i: bind(eqn, [x])[i]
        back = jax.linear_transpose(step, eqn.invars[0].aval)

        def put(old: Any, x: Any, back: Any = back, leaf: Any = leaf) -> Any:
            here = back(jnp.ones_like(x))[0] != 0
            return leaf.put(old, jnp.where(here, back(x)[0], leaf.get(old)))

        get = lambda old, step=step, leaf=leaf: step(leaf.get(old))
        cut = eqn.primitive.name in ("slice", "split")
        part = (*leaf.part, i, str(eqn.params.get("start_indices"))) if cut else leaf.part
        values.append(_Value((), _Leaf(leaf.name, part, get, put)))
    return values


def _check_alike(inputs: list[Any]) -> None:
    if not inputs:
        raise ValueError("prune_in_order: batches is empty; give it at least one batch of inputs.")
    first, *others = (jax.tree.map(shape_only, batch) for batch in inputs)
    for i, other in enumerate(others, 1):
        if other != first:
            raise ValueError(
                f"prune_in_order: batch {i} is {_in_words(other)}, and batch 0 is "
                f"{_in_words(first)}; all batches have one shape. Leave out the last, smaller one."
            )


def _in_words(batch: Any) -> str:
    return ", ".join(f"{x.dtype} {x.shape}" for x in jax.tree.leaves(batch))


def _check_finite(name: str, inputs: Inputs) -> None:
    for i, x in enumerate(inputs.batches):
        if is_known(x) and not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"prune_in_order: the inputs of '{name}' have nan or inf in batch {i}. Look at the "
                "batch, and at the params before this product."
            )
