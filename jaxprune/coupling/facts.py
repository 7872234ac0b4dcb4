"""Facts about values, followed through the programs that an equation holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.jaxprs import scan_ends

Fact = TypeVar("Fact")
Run = Callable[[Program, Sequence[Fact]], list[Fact]]  # facts of the inputs -> of the outputs
Entered = Callable[[list[Fact], list[Fact]], tuple[list[Fact], list[Fact]]]


def through(
    step: Step,
    operands: list[Fact],
    run: Run,
    joined: Callable[[Sequence[Fact]], Fact],
    entered: Entered = lambda carry, xs: (carry, xs),
) -> list[Fact]:
    """Facts of the results of a step that holds programs: cond, scan, while, or a call.

    Args:
      run: what a program makes of facts.
      joined: what holds whichever of several values there is.
      entered: of a loop's first carry and what it steps over, what holds in every round.
    """

    def loop(body: Program, consts: list[Fact], carry: list[Fact], xs: list[Fact]) -> list[Fact]:
        """The carry is followed round until it settles."""
        carry, xs = entered(carry, xs)
        while True:
            results = run(body, [*consts, *carry, *xs])
            after = [joined(pair) for pair in zip(carry, results[: len(carry)], strict=True)]
            if after == carry:
                return results
            carry = after

    kind, params = step.eqn.primitive.name, step.eqn.params
    if kind == "cond":
        ways = [run(branch, operands[1:]) for branch in step.inner]
        return [joined(each) for each in zip(*ways, strict=True)]
    if kind == "scan":
        first, last = scan_ends(params)
        return loop(step.inner[0], operands[:first], operands[first:last], operands[last:])
    if kind == "while":
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        results = loop(step.inner[1], operands[first:last], operands[last:], [])
        run(step.inner[0], [*operands[:first], *results])
        return results
    return run(step.inner[0], operands)  # not the derivative
