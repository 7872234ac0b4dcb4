"""The layout of each leaf as a program reads it: inputs, outputs, and the axis of a stack.

The function is traced on shapes, never run. A value of its jaxpr that is a leaf of the params,
cast, transposed, reshaped or masked, knows which axes of the leaf each of its axes is:

    a product               contracted axes are inputs, batch axes and experts are stacked,
                            the others are outputs; a convolution has a window
    scan                    the axis that it steps over is stacked
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxprune.base import Params
from jaxprune.programs.interpret import enter, programs, walk
from jaxprune.programs.primitives import is_zero, rule_of, sides, zero_like
from jaxprune.prunable.layout import Layout
from jaxprune.trees import present_leaves, shape_only

Axes = tuple[int, ...]


class _View(NamedTuple):
    """A leaf at some place of a program: of each axis there, which axes of the leaf it is."""

    leaf: str
    axes: tuple[Axes, ...]
    stacked: Axes = ()

    def one(self) -> _View:
        """One of the layers that are stacked along the first axis."""
        axis, *rest = self.axes
        return _View(self.leaf, tuple(rest), (*self.stacked, *axis))


def layouts(fn: Callable[..., Any], params: Params, *args: Any) -> dict[str, Layout]:
    """The `Layout` of every leaf of `params` by its name, as `fn(params, *args)` reads it.

        prunable = matching(layouts=layouts(model.apply, params, x))

    knows the inputs and outputs of any kernel, whatever its name, and layers that are stacked.
    A leaf that is not read by one kind of product has no inputs and outputs, and `why` says so.

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
    closed = jax.make_jaxpr(fn)(*jax.tree.map(shape_only, (params, *args)))
    names = [name for name, _ in present_leaves(params)]
    inputs, reader = closed.jaxpr.invars, _Reader(names)
    views: list[_View | None] = [
        _View(name, tuple((axis,) for axis in range(var.aval.ndim)))
        for name, var in zip(names, inputs, strict=False)
    ]
    views += [None] * (len(inputs) - len(views))
    reader.note(reader.read(closed, views), "the end of the program")
    return {name: _layout(list(uses)) for name, uses in reader.uses.items()}


def _layout(uses: list[Any]) -> Layout:
    """One layout from all uses: layouts in products, and the names of other primitives."""
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


class _Reader:
    """Follows views of leaves through a program, and notes what reads them.

    Attributes:
      uses: by leaf, as a set in order: the `Layout` in a product, the names of other primitives.
    """

    def __init__(self, leaves: Sequence[str]):
        self.uses: dict[str, dict[Any, None]] = {leaf: {} for leaf in leaves}

    def note(self, views: Sequence[_View | None], use: Any) -> None:
        for view in views:
            if view is not None:
                self.uses[view.leaf][use] = None

    def read(self, program: Any, views: Sequence[_View | None]) -> list[_View | None]:
        return walk(program, views, self.equation, lambda x, atom: None)

    def equation(self, eqn: Any, operands: list[_View | None]) -> list[_View | None]:
        """The views of the results; the other uses of the operands are noted."""
        unknown: list[_View | None] = [None] * len(eqn.outvars)
        views = [view for view in operands if view is not None]
        if not views:
            return unknown
        kind = eqn.primitive.name
        inner = programs(eqn) if kind != "while" else []
        if inner:
            results = enter(eqn, inner, operands, self.read, _the_same, self.begin)
            return unknown if kind == "scan" else results
        if rule_of(eqn).product is not None:
            for place, view in enumerate(operands):
                if view is not None:
                    self.note([view], _layout_in(eqn, place, view))
            return unknown
        moved = _moved(eqn, operands) if len(views) == 1 and len(eqn.outvars) == 1 else None
        if moved is None:
            self.note(views, kind)
        return unknown if moved is None else [moved]

    def begin(self, carry: list, xs: list) -> tuple[list, list]:
        """The carry of a scan changes from turn to turn; a turn reads one layer of a stack."""
        self.note(carry, "the carry of a scan")
        return [None] * len(carry), [None if view is None else view.one() for view in xs]


def _the_same(views: Sequence[_View | None]) -> _View | None:
    return views[0] if len(set(views)) == 1 else None


def _layout_in(eqn: Any, place: int, view: _View) -> Any:
    """The `Layout` of a leaf that is an operand of a product; the primitive, if it is no kernel."""
    kind, both = eqn.primitive.name, sides(eqn)
    images = place == 0 and kind in ("conv_general_dilated", "ragged_dot_general")
    if both is None or place > 1 or images or eqn.params.get("batch_group_count", 1) != 1:
        return kind
    side = both[place]
    of_leaf = lambda axes: tuple(sorted(a for axis in axes for a in view.axes[axis]))
    named = (*side.contracted, *side.batch, *side.window)
    others = [axis for axis in range(len(view.axes)) if axis not in named]
    stacked = tuple(sorted({*view.stacked, *of_leaf(side.batch)}))  # an expert is a layer
    return Layout(of_leaf(side.contracted), of_leaf(others), stacked)


def _moved(eqn: Any, operands: list[Any]) -> _View | None:
    """The view of a result whose axes were moved or whose entries were changed; None of others."""
    kind, p = eqn.primitive.name, eqn.params
    place = next(i for i, view in enumerate(operands) if view is not None)
    view, before = operands[place], eqn.invars[place].aval.shape
    after = eqn.outvars[0].aval.shape
    if kind == "transpose":
        return view._replace(axes=tuple(view.axes[axis] for axis in p["permutation"]))
    if kind == "squeeze":
        left = tuple(a for i, a in enumerate(view.axes) if i not in p["dimensions"])
        return view._replace(axes=left) if len(left) == len(after) else None
    if kind == "reshape":
        return _reshaped(view, before, after)
    if before != after:
        return None
    if kind in ("optimization_barrier", "rev", "select_n"):
        return view
    # f(0) = 0 entry by entry; next to arrays it is no function of the leaf alone
    numbers = [zero_like(var.aval) if i == place else None for i, var in enumerate(eqn.invars)]
    alone = all(not var.aval.ndim for i, var in enumerate(eqn.invars) if i != place)
    return view if alone and rule_of(eqn).elementwise and is_zero(eqn, numbers) else None


def _reshaped(view: _View, before: Sequence[int], after: Sequence[int]) -> _View | None:
    """Axes that are joined; None where one is split."""
    left, axes = list(zip(before, view.axes, strict=True)), []
    for size in after:
        joined: Axes = ()
        n = 1
        while left and (n < size or left[0][0] == 1):
            n, joined = n * left[0][0], joined + left.pop(0)[1]
        if n != size:
            return None
        axes.append(joined)
    return view._replace(axes=tuple(axes)) if not left else None
