"""What is known of each primitive: one table, which every reader of programs reads.

    axes         `analyze`
    resize,      `compact`: the same program on smaller arrays
    replay
    zeros        `compact` and gates: where a masked and a compacted network differ, where a gate
                 is folded, which equations a removed branch takes along
    elementwise  the same, and `sparsify`: which moments of an optimizer stay zero (`zero_flow`)
    product      `analyze`: names, what is summed over; `layouts`; `count_flops` and `cost`
    flops        `count_flops` and `cost`

`jaxprune.coupling.rules` fills it. A primitive without an entry may do anything: axes freeze, and
nothing is known of its results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune.base import is_known

AxesRule = Callable[..., Sequence[Any]]  # (reader, eqn, operands) -> axes of each result
ZEROS = ("any", "first", "cases", "each", "all")


class Side(NamedTuple):
    """The axes of one operand of a product, by number; those not named are left in the result.

    Attributes:
      contracted: the product sums over these.
      batch: both operands have these, side by side; for a kernel also the axis of experts.
      window: of a convolution.
    """

    contracted: tuple[int, ...]
    batch: tuple[int, ...] = ()
    window: tuple[int, ...] = ()


class Rule(NamedTuple):
    """What is known of a primitive; `register_rule` says what each field is."""

    axes: AxesRule | None = None
    resize: Callable[..., dict[str, Any]] | None = None
    replay: Callable[..., Sequence[Any]] | None = None
    zeros: str | None = None
    elementwise: Callable[..., Any] | None = None
    product: Callable[[Any], tuple[Side, Side]] | None = None
    flops: Callable[..., Sequence[Any]] | None = None


RULES: dict[str, Rule] = {}
_NOTHING = Rule()


def rule_of(eqn: Any) -> Rule:
    """What is known of the primitive of an equation; of one without an entry, nothing."""
    return RULES.get(eqn.primitive.name, _NOTHING)


def rule(*primitives: str, **fields: Any) -> Callable[[AxesRule], AxesRule]:
    """Decorates the axes rule of these primitives; `fields` are the others of their `Rule`."""

    def decorate(axes: AxesRule) -> AxesRule:
        RULES.update(dict.fromkeys(primitives, Rule(axes, **fields)))
        return axes

    return decorate


def register_rule(
    primitive: str,
    axes: AxesRule | None = None,
    *,
    resize: Callable[..., dict[str, Any]] | None = None,
    replay: Callable[..., Sequence[Any]] | None = None,
    zeros: str | None = None,
    elementwise: Callable[..., Any] | None = None,
    product: Callable[[Any], tuple[Any, Any]] | None = None,
    flops: Callable[..., Sequence[Any]] | None = None,
) -> None:
    """Teaches jaxprune a primitive, by its name in a jaxpr; in place of what it knew, if it did.

    One rule serves `analyze`, `compact`, `sparsify`, `layouts` and `count_flops`. A primitive
    `double` that works entry by entry needs one line, since all else follows from it:

        register_rule("double", elementwise=lambda params, x: 2 * x)

    and one that multiplies matrices of shapes (n, k) and (k, m):

        def axes(reader, eqn, operands):
            (n, k), (other, m) = operands
            reader.unify(k, other)
            return [(n, m)]

        register_rule("matmul", axes, zeros="any", product=lambda eqn: ([1], [0]))

    Args:
      axes: `(reader, eqn, operands) -> results`: a tuple of axis expressions for each operand comes
        in, one for each result goes out. `reader.unify(a, b)` says that two axes are the same,
        `reader.freeze(axis, why)` that none of its entries may go, `reader.fresh(n)` is a new axis
        and `reader.frozen(n, why)` one that can't be pruned. Of an elementwise primitive None is
        enough.
      resize: `(step, keep) -> params`, the parameters that hold sizes; `keep.size(e)` is what is
        left of an axis, `step.inputs` and `step.outputs` the axes, `step.eqn` the equation.
      replay: `(step, keep, operands) -> results` on the smaller arrays, in place of binding the
        primitive with the resized parameters.
      zeros: where the results are zero. "any": where any operand is, as in a product. "first":
        where the first operand is, as in a quotient. "cases": where all operands but the first
        are. "each": where all operands are; entries may move. "all": if all operands are zero
        everywhere. None: not known, unless `elementwise` gives 0 for zeros.
      elementwise: `(params, *numbers) -> number`, one entry of the result by numpy, from one entry
        of each operand; None where it is not known.
      product: `(eqn) -> (axes, axes)`, the axes of the first and of the second operand that are
        summed over, by number; or a `Side` for each, which names batch axes too.
      flops: `(eqn, inputs, outputs) -> sizes`, numbers and axes whose product is the FLOPs;
        `inputs` and `outputs` are the shapes of the operands and results, or their axes. None: a
        product has 2 for each entry of the result and each entry that is summed for it.

    Raises:
      TypeError: if `primitive` is no name, or a rule is no function.
      ValueError: if `zeros` is none of the words.
    """
    if not isinstance(primitive, str):
        raise TypeError(
            f"register_rule takes a primitive by its name in a jaxpr, such as 'sort'; got "
            f"{primitive!r}."
        )
    if axes is None and elementwise is not None:
        axes = RULES["add"].axes
    functions = {"axes": axes, "resize": resize, "replay": replay, "elementwise": elementwise}
    for what, function in (functions | {"product": product, "flops": flops}).items():
        if not (callable(function) or (function is None and what != "axes")):
            raise TypeError(f"register_rule: {what} is a function; got {function!r}.")
    if zeros not in (None, *ZEROS):
        raise ValueError(f"register_rule: zeros is one of {', '.join(ZEROS)}; got {zeros!r}.")
    RULES[primitive] = Rule(axes, resize, replay, zeros, elementwise, product, flops)


def sides(eqn: Any) -> tuple[Side, Side] | None:
    """The axes of both operands of a product; None if the equation is none."""
    product = rule_of(eqn).product
    if product is None:
        return None
    first, second = (s if isinstance(s, Side) else Side(tuple(s)) for s in product(eqn))
    return first, second


def zero_like(aval: Any) -> Any:
    """Zero, a numpy scalar of this dtype; None for keys of random numbers and tokens."""
    return _zero(getattr(aval, "dtype", None))


def known_number(x: Any, aval: Any) -> Any:
    """The number that a constant of one entry is, a numpy scalar; None where it is not known."""
    if np.size(x) != 1 or not is_known(x) or zero_like(aval) is None:
        return None
    return np.asarray(x, aval.dtype).reshape(())


@cache
def _tiny(dtype: Any) -> Any:
    """The smallest normal float; None for other dtypes."""
    return jnp.finfo(dtype).tiny if jnp.issubdtype(dtype, jnp.floating) else None


@cache
def _zero(dtype: Any) -> Any:
    is_number = dtype is not None and (dtype == np.bool_ or jnp.issubdtype(dtype, np.number))
    return np.zeros((), dtype) if is_number else None


def number_of(eqn: Any, numbers: Sequence[Any]) -> Any:
    """An entry of an elementwise result, a numpy scalar, from an entry of each operand.

    None where an entry is None (not known), where the result is nan, and where devices differ: some
    take numbers below the smallest normal float for zero.
    """
    function, dtype = rule_of(eqn).elementwise, eqn.outvars[0].aval.dtype
    if function is None or any(number is None for number in numbers):
        return None
    with np.errstate(all="ignore"):
        number = function(eqn.params, *numbers)
    if number is None:
        return None
    number, tiny = np.asarray(number, dtype), _tiny(dtype)
    return number if tiny is None or number == 0 or abs(number) >= tiny else None


def is_zero(eqn: Any, numbers: Sequence[Any]) -> bool:
    """Whether the results are zero where the entries of the operands are `numbers`, None unknown.

    A sum over no entries is zero, and so is a maximum: in a masked network these entries are there,
    and zero. Zero times anything is zero, also times inf, and so is zero over anything.
    """
    zeros = rule_of(eqn).zeros
    if zeros is None:
        number = number_of(eqn, numbers)
        return number is not None and bool(number == 0)
    zero = [number is not None and bool(number == 0) for number in numbers]
    if zeros == "any":
        return any(zero)
    if zeros == "first":
        return zero[0]
    return bool(zero) and all(zero[1:] if zeros == "cases" else zero)
