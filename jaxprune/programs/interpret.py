"""The one walk through a jaxpr, and through the programs that its equations hold.

A reader gives `walk` a function from an equation and values of its operands to values of its
results. Values are whatever the reader follows: arrays, axes, origins, facts. Where an equation
holds programs, the reader goes on with `enter`. What is written differently in the jaxprs of
different versions of JAX is read here only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

Fact = TypeVar("Fact")

# programs of an equation that run once, and have no derivative of their own
CALLS = (
    *("pjit", "jit", "closed_call", "core_call", "remat", "remat2", "checkpoint"),
    "fast_conv",  # jp.conv_general_dilated
)


def walk(
    program: Any,
    operands: Iterable[Any],
    equation: Callable[[Any, list[Any]], Iterable[Any]],
    constant: Callable[[Any, Any], Any],
    steps: Iterable[Any] | None = None,
) -> list[Any]:
    """The values of a program's results, from the values of its inputs.

    Args:
      program: a `ClosedJaxpr`, or what has its `jaxpr` and `consts`.
      operands: a value for each input.
      equation: `(eqn, values of the operands) -> values of the results`.
      constant: `(x, atom) -> value` of a constant x, which the jaxpr names by a variable or writes
        as a `Literal`.
      steps: what `equation` is given in place of each equation; None for the equations.
    """
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.invars, operands, strict=True))
    for var, x in zip(jaxpr.constvars, program.consts, strict=True):
        values[var] = constant(x, var)

    def value(atom: Any) -> Any:
        return constant(atom.val, atom) if isinstance(atom, Literal) else values[atom]

    last = _last_reads(jaxpr)
    steps = jaxpr.eqns if steps is None else steps
    for place, (eqn, step) in enumerate(zip(jaxpr.eqns, steps, strict=True)):
        results = equation(step, [value(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, results, strict=True))
        for var in last.get(place, ()):  # arrays may be large
            values.pop(var, None)
    return [value(atom) for atom in jaxpr.outvars]


def _last_reads(jaxpr: Any) -> dict[int, list[Any]]:
    """By the place of an equation the variables that nothing reads after it."""
    place_of = {
        atom: place
        for place, eqn in enumerate(jaxpr.eqns)
        for atom in eqn.invars
        if not isinstance(atom, Literal)
    }
    results = {id(atom) for atom in jaxpr.outvars}
    last: dict[int, list[Any]] = {}
    for var, place in place_of.items():
        if id(var) not in results:
            last.setdefault(place, []).append(var)
    return last


def enter(
    eqn: Any,
    inner: Sequence[Any],
    operands: list[Fact],
    run: Callable[[Any, list[Fact]], list[Fact]],
    joined: Callable[[Sequence[Fact]], Fact],
    begin: Callable[[list[Fact], list[Fact]], tuple[list[Fact], list[Fact]]] | None = None,
) -> list[Fact]:
    """Facts about the results of an equation that holds programs.

    Args:
      inner: the programs, in the order of `programs(eqn)`.
      operands: a fact for each operand.
      run: `(program, facts of its inputs) -> facts of its results`. A loop runs its body until the
        facts of the carry settle.
      joined: what is true of a value that may be any of several.
      begin: `(carry, xs) -> (carry, xs)`, what is true in every turn of a loop, from what is true
        of its first carry and of the arrays that a scan steps over.
    """

    def loop(body: Any, consts: list[Fact], carry: list[Fact], xs: list[Fact]) -> Any:
        """The carry of any turn, and the results of the last one."""
        carry, xs = begin(carry, xs) if begin else (carry, xs)
        while True:
            results = run(body, [*consts, *carry, *xs])
            after = [joined(pair) for pair in zip(carry, results, strict=False)]
            if after == carry:
                return carry, results
            carry = after

    kind = eqn.primitive.name
    if kind == "cond":
        ways = [run(branch, operands[1:]) for branch in inner]
        return [joined(each) for each in zip(*ways, strict=True)]
    if kind == "scan":
        carry, results = loop(inner[0], *scan_parts(eqn, operands))
        return results if eqn.params["length"] != 0 else [*carry, *results[len(carry) :]]
    if kind == "while":
        of_condition, consts, carry = while_parts(eqn, operands)
        carry, _ = loop(inner[1], consts, carry, [])  # there may be no turn
        run(inner[0], [*of_condition, *carry])
        return carry
    return run(inner[0], operands)


def programs(eqn: Any) -> list[ClosedJaxpr]:
    """The programs of an equation that can be entered; most have none.

    These are the branches of a cond, the condition and the body of a while, the body of a scan,
    and the program of a call: the first whose inputs and results have the ranks of the equation's.
    The scalar function of a reduction is none.
    """
    kind, params = eqn.primitive.name, eqn.params
    if kind == "cond":
        return list(params["branches"])
    if kind == "while":
        return [params["cond_jaxpr"], params["body_jaxpr"]]
    if kind == "scan":
        return [params["jaxpr"]]
    return [closed for closed in held(eqn) if _ranks(closed.jaxpr) == _ranks(eqn)][:1]


def held(eqn: Any) -> list[ClosedJaxpr]:
    """All jaxprs among the parameters of an equation."""
    jaxprs = []
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                jaxprs.append(each)
            elif isinstance(each, Jaxpr):
                jaxprs.append(ClosedJaxpr(each, ()))
    return jaxprs


def _ranks(program: Any) -> Any:
    rank = lambda atom: len(getattr(atom.aval, "shape", ()))
    return list(map(rank, program.invars)), list(map(rank, program.outvars))


def scan_parts(eqn: Any, operands: Sequence[Fact]) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """The operands of a scan: the constants, the carry, and the arrays that it steps over.

    JAX 0.11 has trees of them in place of `num_consts` and `num_carry`.
    """
    params = eqn.params
    if "num_consts" in params:
        consts, carry = params["num_consts"], params["num_carry"]
    else:
        consts, carry, _ = (len(list(part)) for part in params["ft_in"].unpack())
    last = consts + carry
    return list(operands[:consts]), list(operands[consts:last]), list(operands[last:])


def while_parts(eqn: Any, operands: Sequence[Fact]) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """The operands of a while: constants of its condition, constants of its body, the carry."""
    first = eqn.params["cond_nconsts"]
    last = first + eqn.params["body_nconsts"]
    return list(operands[:first]), list(operands[first:last]), list(operands[last:])


def bind(eqn: Any, operands: Sequence[Any], **changed: Any) -> list[Any]:
    """The results of an equation on these operands, with the parameters `changed`.

    Until JAX 0.10 functions inside an equation were handed to it apart from its parameters.
    """
    params = eqn.primitive.get_bind_params({**eqn.params, **changed})
    functions, params = params if isinstance(params, tuple) else ((), params)
    results = eqn.primitive.bind(*functions, *operands, **params)
    return list(results) if eqn.primitive.multiple_results else [results]


def line_of(eqn: Any) -> str:
    """Where an equation was written, as ", at file.py:12"; empty if that is not known."""
    path, colon, rest = source_info_util.summarize(eqn.source_info).partition(":")
    return f", at {path.rsplit('/', 1)[-1]}:{re.split('[: ]', rest)[0]}" if colon else ""
