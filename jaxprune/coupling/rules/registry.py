"""What each primitive does to axes: the table, and how to add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

AxesRule = Callable[..., Sequence[Any]]  # (reader, eqn, operands) -> axes of each result


class Rule(NamedTuple):
    """How a primitive is read, and how it is replayed on smaller arrays.

    Attributes:
      axes: `(reader, eqn, operands) -> results`, where `operands` and `results` are tuples of axis
        expressions, one tuple a value. It states with `reader.unify(a, b)` which axes are the
        same, and with `reader.freeze(axis, why)` which must stay as they are.
      resize: `(step, keep) -> params`, those parameters of the primitive that hold sizes, for the
        smaller arrays; None where there are none.
      replay: `(step, keep, operands) -> results`, arrays; None to bind the primitive again.
    """

    axes: AxesRule
    resize: Callable[..., dict[str, Any]] | None = None
    replay: Callable[..., Sequence[Any]] | None = None


RULES: dict[str, Rule] = {}


def rule(
    *primitives: str, resize: Callable | None = None, replay: Callable | None = None
) -> Callable[[AxesRule], AxesRule]:
    """Decorates the axes rule of these primitives."""

    def decorate(axes: AxesRule) -> AxesRule:
        RULES.update(dict.fromkeys(primitives, Rule(axes, resize, replay)))
        return axes

    return decorate


def register_rule(
    primitive: str,
    axes: AxesRule,
    *,
    resize: Callable[..., dict[str, Any]] | None = None,
    replay: Callable[..., Sequence[Any]] | None = None,
) -> None:
    """Teaches `analyze` a primitive, by its name in a jaxpr; in place of what it knew, if it did.

    A rule for a primitive `double` of one operand, which leaves axes as they are:

        register_rule("double", lambda reader, eqn, operands: [operands[0]])

    Args:
      axes: `(reader, eqn, operands) -> results`: a tuple of axis expressions for each operand comes
        in, one for each result goes out. `reader.unify(a, b)` says that two axes are the same,
        `reader.freeze(axis, why)` that none of its entries may go, `reader.fresh(n)` is a new axis
        and `reader.frozen(n, why)` one that can't be pruned.
      resize: `(step, keep) -> params`, the parameters that hold sizes; `keep.size(e)` is what is
        left of an axis, `step.inputs` and `step.outputs` its axes, `step.eqn` the equation.
      replay: `(step, keep, operands) -> results` on the smaller arrays, in place of binding the
        primitive with the resized parameters.

    Raises:
      TypeError: if `primitive` is no name, or a rule is no function.
    """
    if not isinstance(primitive, str):
        raise TypeError(
            f"register_rule takes a primitive by its name in a jaxpr, such as 'sort'; got "
            f"{primitive!r}."
        )
    for what, function in (("axes", axes), ("resize", resize), ("replay", replay)):
        if not (callable(function) or (function is None and what != "axes")):
            raise TypeError(f"register_rule: {what} is a function; got {function!r}.")
    RULES[primitive] = Rule(axes, resize, replay)
