"""The leaves of a part of a network whose zeros are enough to silence all of it.

Of x + out(attention(norm(x))) it is the kernel of `out`, with its bias: the function is linear in
them, so a factor on them is a factor on what the block adds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.interpret import enter, walk
from jaxprune.programs.primitives import is_zero, known_number, number_of, rule_of, zero_like

Paths = frozenset[str]
NONE: Paths = frozenset()


class _Value(NamedTuple):
    """What is known of a value.

    Attributes:
      zero: the value is zero if these leaves are; None where no zeros of the part make it zero.
      behind: the leaves of the part that were the last before it, on ways that still matter.
      number: it is this number everywhere, a numpy scalar; None if not known.
      depends: whether it depends on an input of the function, with zeros in the part too.
    """

    zero: Paths | None = None
    behind: Paths = NONE
    number: Any = None
    depends: bool = False


def last_layers(
    program: Program, paths: Iterable[str], parts: Mapping[str, Collection[str]]
) -> dict[str, Paths | None]:
    """By part its last leaves before its results leave it; None if there is no way around it.

    Args:
      paths: of the leaves that are the first operands of the program, in their order.
      parts: the paths of the leaves of each part. Without the part every output that depends on an
        input still has to.
    """
    paths = list(paths)
    before = _followed(program, paths, ())

    def last(part: Collection[str]) -> Paths | None:
        results = _followed(program, paths, frozenset(part))
        if any(then.depends and not now.depends for then, now in zip(before, results, strict=True)):
            return None
        return NONE.union(*(x.behind for x in results))

    return {name: last(part) for name, part in parts.items()}


def _followed(program: Program, paths: Sequence[str], part: Collection[str]) -> list[_Value]:
    """What is known of the results."""
    met: dict[str, int] = {}  # the leaves of the part, in the order of the data

    def rank(some: Paths) -> int:
        return min((met.setdefault(path, len(met)) for path in some), default=len(part))

    def step(step: Step, operands: list[_Value]) -> list[_Value]:
        eqn = step.eqn
        if step.inner:
            return enter(eqn, step.inner, operands, run, _either)
        zeros = [x.zero for x in operands if x.zero]
        for zero in zeros:
            rank(zero)
        avals = [var.aval for var in eqn.invars]
        pairs = list(zip(operands, avals, strict=True))
        numbers = [x.number if x.zero is None else zero_like(aval) for x, aval in pairs]
        if zeros and is_zero(eqn, numbers):
            if rule_of(eqn).zeros == "any":
                return [_Value(max(zeros, key=rank)) for _ in eqn.outvars]
            return [_Value(NONE.union(*zeros)) for _ in eqn.outvars]
        behind = NONE.union(*zeros, *(x.behind for x in operands))
        number = None if zeros else _number(eqn, operands)
        depends = any(x.depends for x in operands)
        return [_Value(None, behind, number, depends) for _ in eqn.outvars]

    def run(program: Any, inputs: Sequence[_Value]) -> list[_Value]:
        return walk(program, inputs, step, _constant, program.steps)

    leaves = [_Value(frozenset({path}) if path in part else None) for path in paths]
    inputs = [_Value(depends=True)] * (len(program.in_axes) - len(leaves))
    return run(program, [*leaves, *inputs])


_KEEPS_NUMBER = ("broadcast_in_dim", "reshape", "squeeze", "copy")


def _number(eqn: Any, operands: Sequence[_Value]) -> Any:
    if eqn.primitive.name in _KEEPS_NUMBER:
        return operands[0].number
    return number_of(eqn, [x.number for x in operands])


def _constant(x: Any, atom: Any) -> _Value:
    return _Value(number=known_number(x, atom.aval))


def _either(values: Sequence[_Value]) -> _Value:
    """What is true of a value that may be any of several."""
    behind, depends = NONE.union(*(x.behind for x in values)), any(x.depends for x in values)
    zeros = NONE.union(*(x.zero or NONE for x in values))
    if zeros and all(x.zero is not None or x.number == 0 for x in values):
        return _Value(zeros, behind)
    first = values[0].number
    same = not zeros and first is not None and all(x.number == first for x in values)
    return _Value(None, behind | zeros, first if same else None, depends)
