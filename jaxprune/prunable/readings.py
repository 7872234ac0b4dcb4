"""The layout of each leaf as a program reads it: what is contracted, what a scan steps over.

The function is traced on shapes, never run. A value of its jaxpr that is a leaf of the params,
cast, transposed, reshaped or masked, knows which axes of the leaf each of its axes is:

    dot_general             contracted axes are inputs, batch axes stacked, the others outputs
    ragged_dot_general      so are those of experts, each a layer
    conv_general_dilated    the axes of its dimension numbers
    scan                    the axis that it steps over is stacked
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from jaxprune.base import Params
from jaxprune.programs.jaxprs import scan_ends
from jaxprune.prunable.layout import Layout
from jaxprune.trees import named_leaves, shape_only

Axes = tuple[int, ...]


class _View(NamedTuple):
    """A leaf at some place of a program: of each axis there, which axes of the leaf it is."""

    leaf: str
    axes: tuple[Axes, ...]
    stacked: Axes = ()


# One array in, with numbers beside it, one of its shape out.
_ELEMENTWISE = {
    "abs", "convert_element_type", "copy", "copy_p", "div", "mul", "neg", "optimization_barrier",
    "reduce_precision", "rev", "select_n", "sharding_constraint", "stop_gradient",
}  # fmt: skip


def layouts(fn: Callable[..., Any], params: Params, *args: Any) -> dict[str, Layout]:
    """The `Layout` of every leaf of `params` by its name, as `fn(params, *args)` reads it.

        prunable = matching(layouts=layouts(model.apply, params, x))

    knows the inputs and outputs of any kernel, whatever it is called, and layers that are stacked.
    What is not read by one kind of product has no inputs and outputs, and `why` says so.

    Args:
      fn: traced and never run.
      params, *args: pytrees of arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.

    Raises:
      TypeError: if `fn` can't be called, or an argument is no array.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'mix': jnp.ones((8, 4, 2)), 'shift': jnp.ones((4, 2))}
    >>> fn = lambda p, x: jnp.einsum('bi,iho->bho', x, p['mix']) + p['shift'][None]
    >>> found = jp.layouts(fn, params, jnp.ones((3, 8)))
    >>> found['mix']
    Layout(inputs=(0,), outputs=(1, 2), stacked=(), why=None)
    >>> found['shift'].why
    'no product reads it, but broadcast_in_dim'
    """
    if not callable(fn):
        raise TypeError(
            "layouts(fn, params, *args) traces a function, such as model.apply; got "
            f"{type(fn).__name__}."
        )
    jaxpr = jax.make_jaxpr(fn)(*jax.tree.map(shape_only, (params, *args))).jaxpr
    named = [(name, leaf) for name, leaf in named_leaves(params) if leaf is not None]
    uses: dict[str, dict[Any, None]] = {name: {} for name, _ in named}
    views: list[Any] = [
        _View(name, tuple((axis,) for axis in range(var.aval.ndim)))
        for (name, _), var in zip(named, jaxpr.invars, strict=False)
    ]
    views += [None] * (len(jaxpr.invars) - len(views))
    for view in _walk(jaxpr, views, uses):
        if view is not None:
            uses[view.leaf]["the end of the program"] = None
    return {name: _layout(list(found)) for name, found in uses.items()}


def _layout(uses: list[Any]) -> Layout:
    """One layout of all uses: layouts of products, and names of primitives for what is none."""
    products = [use for use in uses if isinstance(use, Layout)]
    others = [use for use in uses if isinstance(use, str)]
    if len(products) == 1 and not others:
        return products[0]
    if not uses:
        return Layout(why="nothing reads it")
    if not products:
        return Layout(why=f"no product reads it, but {', '.join(others)}")
    ways = [f"a product with inputs {p.inputs} and outputs {p.outputs}" for p in products]
    return Layout(why=f"it is read in several ways: {', '.join([*ways, *others])}")


def _walk(jaxpr: Jaxpr, views: Sequence[Any], uses: dict[str, dict]) -> list[Any]:
    known = dict(zip(jaxpr.invars, views, strict=True))
    view_of = lambda var: None if isinstance(var, Literal) else known.get(var)
    for eqn in jaxpr.eqns:
        operands = [view_of(var) for var in eqn.invars]
        if any(operand is not None for operand in operands):
            results = _equation(eqn, operands, uses)
            known.update(zip(eqn.outvars, results, strict=True))
    return [view_of(var) for var in jaxpr.outvars]


def _equation(eqn: Any, operands: list[Any], uses: dict[str, dict]) -> list[Any]:
    """The views of the results; what the operands are used for is noted in `uses`."""
    kind, unknown = eqn.primitive.name, [None] * len(eqn.outvars)
    if kind in ("dot_general", "ragged_dot_general", "conv_general_dilated"):
        for side, view in enumerate(operands):
            if view is not None:
                uses[view.leaf][_product(eqn, side, view)] = None
        return unknown
    if kind == "scan":
        return _scan(eqn, operands, uses)
    if kind == "cond":
        ways = [_walk(b.jaxpr, operands[1:], uses) for b in eqn.params["branches"]]
        return [same[0] if len(set(same)) == 1 else None for same in zip(*ways, strict=True)]
    for jaxpr in jaxprs_in_params(eqn.params) if kind != "while" else ():
        if len(jaxpr.invars) == len(operands):  # jit, remat, custom derivatives, ...
            return _walk(jaxpr, operands, uses)
    first = [view for view in operands if view is not None]
    moved = _moved(eqn, operands) if len(first) == 1 and len(eqn.outvars) == 1 else None
    if moved is not None:
        return [moved]
    for view in first:
        uses[view.leaf][kind] = None
    return unknown


def _product(eqn: Any, side: int, view: _View) -> Any:
    """What a product does with the axes of a leaf: a `Layout`, or the name of the primitive."""
    kind = eqn.primitive.name
    window: Sequence[int] = ()
    contracted: Sequence[int]
    batch: Sequence[int]
    if kind == "dot_general":
        numbers = eqn.params["dimension_numbers"]
        contracted, batch = numbers[0][side], numbers[1][side]
    elif kind == "ragged_dot_general":
        ragged = eqn.params["ragged_dot_dimension_numbers"]
        if side != 1:
            return kind
        contracted, batch = (own[1] for own in ragged.dot_dimension_numbers)
        batch = (*batch, *ragged.rhs_group_dimensions)  # an expert is a layer
    elif side == 1 and eqn.params["batch_group_count"] == 1:
        _, inputs, *window = eqn.params["dimension_numbers"].rhs_spec
        contracted, batch = (inputs,), ()
    else:
        return kind
    of_leaf = lambda own: tuple(sorted(a for axis in own for a in view.axes[axis]))
    others = [a for a in range(len(view.axes)) if a not in (*contracted, *batch, *window)]
    stacked = tuple(sorted({*view.stacked, *of_leaf(batch)}))
    return Layout(of_leaf(contracted), of_leaf(others), stacked)


def _scan(eqn: Any, operands: list[Any], uses: dict[str, dict]) -> list[Any]:
    first, last = scan_ends(eqn.params)
    for view in operands[first:last]:  # it changes from turn to turn
        if view is not None:
            uses[view.leaf]["the carry of a scan"] = None
    steps = [_step_of(view, uses) for view in operands[last:]]
    body = eqn.params["jaxpr"].jaxpr
    _walk(body, [*operands[:first], *[None] * (last - first), *steps], uses)
    return [None] * len(eqn.outvars)


def _step_of(view: Any, uses: dict[str, dict]) -> Any:
    """A leaf that a scan steps over, as the body sees it."""
    if view is None:
        return None
    axis, *rest = view.axes
    return _View(view.leaf, tuple(rest), (*view.stacked, *axis))


def _moved(eqn: Any, operands: list[Any]) -> _View | None:
    """The view of the result of what moves axes or changes entries one by one; None of all else."""
    kind, p = eqn.primitive.name, eqn.params
    place = next(i for i, view in enumerate(operands) if view is not None)
    view, before = operands[place], eqn.invars[place].aval.shape
    after = eqn.outvars[0].aval.shape
    if kind == "transpose":
        return view._replace(axes=tuple(view.axes[axis] for axis in p["permutation"]))
    if kind == "squeeze":
        kept = [a for i, a in enumerate(view.axes) if i not in p["dimensions"]]
        return view._replace(axes=tuple(kept)) if len(kept) == len(after) else None
    if kind == "reshape":
        return _reshaped(view, before, after)
    is_number = [not var.aval.ndim for i, var in enumerate(eqn.invars) if i != place]
    # a mask is no product with an activation: it is of the shape of the leaf, or a number
    if kind == "select_n" or (kind in _ELEMENTWISE and all(is_number)):
        return view if before == after else None
    return None


def _reshaped(view: _View, before: Sequence[int], after: Sequence[int]) -> _View | None:
    """Axes that are joined; None where one is split."""
    left, axes = list(zip(before, view.axes, strict=True)), []
    for size in after:
        own: Axes = ()
        n = 1
        while left and (n < size or left[0][0] == 1):
            n, own = n * left[0][0], own + left.pop(0)[1]
        if n != size:
            return None
        axes.append(own)
    return view._replace(axes=tuple(axes)) if not left else None
