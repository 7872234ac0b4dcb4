"""The code of a network on the small params, and whether it is the same program."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxprune.coupling.reader import Program, Step
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.programs.interpret import programs
from jaxprune.programs.primitives import rule_of
from jaxprune.structured.kept import KeptLike, check_kept


class Retraced(NamedTuple):
    """A function whose Python code runs on the small params.

    Attributes:
      fn: `(small_params, *args) -> Any`.
      differs: the numbers that follow the sizes, before and now, and where: the n of a mean, the
        root in attention. If empty, it computes what the replayed function does.
    """

    fn: Callable[..., Any]
    differs: tuple[str, ...]


def retrace(structure: Structure, kept: KeptLike, fn: Callable[..., Any] | None = None) -> Retraced:
    """The code of the network run anew on the small params, proven to be the same program.

    `replay` runs the equations that were traced, and serves for everything. `retrace` runs the
    code: to edit it, or to read true shapes. It traces the code on the small shapes and compares
    the two programs, equation by equation. They are the same, but for the numbers in `differs`;
    else an error says where they part. Linen layers with a `kernel` take their widths from it; code
    with widths written down needs an `fn` with the small ones. It serves nnx modules that read
    sizes from their arrays: attention and grouped convolutions do not.

    Args:
      structure: of `analyze`.
      kept: bool (size,) by group, not traced; no `Removal`.
      fn: code with the small widths, such as `Net(widths=(3, 5)).apply`; None for the function
        that was analyzed.

    Raises:
      ValueError: if the code can't run on the small shapes, has side effects, or takes another
        path than it did, as Python that branches on shapes does.
    """
    left = check_kept(structure, kept)
    if left.is_removal:
        raise ValueError(
            "retrace: the network has lost branches, and only `replay` knows the program that is "
            "left. Write the smaller network, and give it the params that are left."
        )
    small_fn = _with_widths(structure.fn if fn is None else fn)
    try:
        closed = jax.make_jaxpr(small_fn)(left.params(), *left.inputs())
    except Exception as error:
        raise ValueError(
            "retrace: the code can't run on the small params, for something in it has the old "
            f"sizes written down ({type(error).__name__}: {str(error).splitlines()[0]}). Give "
            "fn=, the same with the small widths, or take compact(...).fn, which replays."
        ) from error
    if closed.effects:
        names = ", ".join(sorted(str(effect) for effect in closed.effects))
        raise ValueError(f"retrace: the function has side effects ({names}): remove them first.")
    found: dict[str, None] = {}
    _compare(structure.program, left.axes, closed, found)
    return Retraced(small_fn, tuple(found))


def _compare(program: Program, keep: Keep, closed: Any, found: dict[str, None]) -> None:
    """Puts into `found` the numbers that differ; an error if anything else does."""
    jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    consts = closed.consts if isinstance(closed, ClosedJaxpr) else ()
    pairs = [
        *zip(program.jaxpr.invars, jaxpr.invars, strict=True),
        *zip(program.jaxpr.constvars, jaxpr.constvars, strict=False),
    ]
    same = dict(pairs)
    for var, x, new in zip(program.jaxpr.constvars, program.consts, consts, strict=False):
        old = np.asarray(keep.take(x, program.constants[id(var)]))
        if old.shape != np.shape(new) or not np.array_equal(old, new):
            found.setdefault(f"a constant of shape {np.shape(x)}")
    for step, eqn in zip(program.steps, jaxpr.eqns, strict=False):
        if not _is_same(step, keep, eqn):
            _part(step, f"has {_written(eqn)} where there was {_written(step.eqn)}")
        for old, new in zip(step.eqn.invars, eqn.invars, strict=True):
            if isinstance(old, Literal) and isinstance(new, Literal):
                if not (old.val == new.val or old.val != old.val):  # nan is nan
                    kind = eqn.primitive.name
                    found.setdefault(f"{kind} {old.val:g} -> {new.val:g} {step.line}")
            elif isinstance(old, Literal) or isinstance(new, Literal) or same.get(old) is not new:
                _part(step, f"gives {_written(eqn)} other operands")
        same |= dict(zip(step.eqn.outvars, eqn.outvars, strict=True))
        for inner, held_now in zip(step.inner, programs(eqn), strict=False):
            _compare(inner, keep, held_now, found)
    if len(program.steps) != len(jaxpr.eqns):
        n, now = len(program.steps), len(jaxpr.eqns)
        raise ValueError(f"retrace: the code has {now} equations on the small params, had {n}.")


def _is_same(step: Step, keep: Keep, eqn: Any) -> bool:
    """Whether `eqn` is the same step, on what is left of its operands."""
    if step.eqn.primitive is not eqn.primitive or len(step.eqn.invars) != len(eqn.invars):
        return False
    shapes = [keep.shape(axes) for axes in step.outputs]
    if shapes != [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]:
        return False
    resize = rule_of(eqn).resize
    params = {**step.eqn.params, **(resize(step, keep) if resize else {})}
    plain = (bool, int, float, str, tuple, np.dtype)
    return all(
        params.get(name) == value or value != value  # nan is nan
        for name, value in eqn.params.items()
        if isinstance(value, plain) and not step.inner
    )


def _written(eqn: Any) -> str:
    shapes = ", ".join(str(getattr(var.aval, "shape", ())) for var in eqn.outvars)
    return f"{eqn.primitive.name} of shape {shapes}"


def _part(step: Step, why: str) -> None:
    raise ValueError(
        f"retrace: on the small params the code takes another path: it {why}, {step.line}. Python "
        "that reads shapes, or sizes written down, does that; replay does not."
    )


def _with_widths(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` with linen layers as wide as their kernels."""
    linen = sys.modules.get("flax.linen")
    if linen is None:
        return fn

    def as_its_kernel(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__" and hasattr(module, "features"):
            kernel = module.get_variable("params", "kernel") if module.scope else None
            if kernel is not None:
                _widen(module, kernel.shape, args)
        return method(*args, **kwargs)

    def small_fn(*args: Any) -> Any:
        with linen.intercept_methods(as_its_kernel):
            return fn(*args)

    return small_fn


def _widen(module: Any, shape: tuple[int, ...], args: Any) -> None:
    """Gives a layer the features and groups that its kernel has."""
    many = isinstance(module.features, (tuple, list))
    features = shape[-len(module.features) :] if many else shape[-1]
    object.__setattr__(module, "features", features)
    if getattr(module, "feature_group_count", 1) > 1:
        object.__setattr__(module, "feature_group_count", args[0].shape[-1] // shape[-2])
