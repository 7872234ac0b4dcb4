"""Where a masked network and a compacted one differ, read off the program.

A pruned neuron has zero weights in the masked network and is not there in the compacted one. The
two compute the same as long as what is summed over its axis is zero there: always, where weights
of the neuron take part in the product; where they don't, if the values are. `value` says for which
neurons a value is zero. Layer norm with E[x^2] - E[x]^2 passes, with E[(x - E[x])^2] it does not:
a pruned x is zero, x - E[x] is not. A softmax over neurons counts exp(0) for a pruned one.

On the way it is found which zeros are enough (`closers`): of conv -> norm -> relu those of the
norm's scale and bias, which close a neuron for all that reads it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from jaxprune.coupling.expressions import Atom, Axes, atoms
from jaxprune.coupling.facts import through
from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.jaxprs import dot_numbers

Atoms = frozenset[Atom]
Place = tuple[str, int]  # the path of a leaf, and an axis of it
Zero = dict[Atom, frozenset[Place]]

# f(0) = 0 entry by entry, or entries only move
KEEPS_ZERO = {
    "abs", "add", "add_any", "asin", "asinh", "atan", "atanh", "broadcast_in_dim", "cbrt", "ceil",
    "concatenate", "conj", "convert_element_type", "copy", "copy_p", "cumsum",
    "dynamic_update_slice", "erf", "erf_inv", "expm1", "floor", "imag", "log1p", "max", "min",
    "name", "neg", "optimization_barrier", "real", "reduce_precision", "reduce_window_max",
    "reduce_window_min", "reduce_window_sum", "reshape", "rev", "round", "sharding_constraint",
    "sign", "sin", "sinh", "slice", "split", "sqrt", "square", "squeeze", "stack",
    "stop_gradient", "sub", "tan", "tanh", "tile", "transpose", "unstack",
}  # fmt: skip


PRODUCTS = {"conv_general_dilated", "dot_general", "ragged_dot_general"}
RANDOM = {"random_bits", "random_gamma", "rng_bit_generator", "rng_uniform"}


class _Value(NamedTuple):
    """What is known of a value: where pruned neurons of these atoms are, it is zero.

    That is so if the leaves are zero at these places.
    """

    zero: Zero
    constant: float | None = None  # all of it is this number
    static: bool = True  # no input of the function takes part in it
    leaf: tuple[Place, ...] | None = None  # it is a leaf, and these are its axes


def differences(
    program: Program, leaves: Mapping[str, Axes], groups: Iterable[Atom]
) -> dict[str, tuple[Atom, ...]]:
    """Where the two networks may differ, in words, and the atoms of the neurons that make it so.

    Args:
      leaves: the axes of the params by path, the first of the program's inputs.
      groups: the atoms that can be pruned.
    """
    found = _Finder.of(program, leaves, groups).found
    return {why: tuple(own) for why, own in found.items()}


def closers(
    program: Program,
    leaves: Mapping[str, Axes],
    groups: Iterable[Atom],
    at_readers: bool = False,
) -> dict[Atom, tuple[Place, ...]]:
    """For each atom the axes of leaves on which zeros are enough to close its neurons.

    All that reads a neuron then reads zero. They are as near as can be to what reads: a norm's
    scale and bias, not the kernel before it. Where nothing before a kernel can make a zero of a
    neuron, since f(0) is none or the neuron is an input's, it is the rows of that kernel. With
    `at_readers` it is the rows of every kernel that reads the neuron.

    Args: as for `differences`, where what can't be closed is.
    """
    finder = _Finder.of(program, leaves, groups, at_readers)
    return {
        atom: tuple(sorted(own, key=lambda place: (finder.rank(frozenset({place})), place)))
        for atom, own in finder.closers.items()
    }


_Operand = tuple[_Value, Axes]


class _Finder:
    def __init__(self, groups: Atoms, at_readers: bool):
        self.groups, self.at_readers = groups, at_readers
        self.found: dict[str, dict[Atom, None]] = {}
        self.closers: Zero = {}
        self.met: dict[str, int] = {}  # the leaves in the order of the data

    @classmethod
    def of(
        cls,
        program: Program,
        leaves: Mapping[str, Axes],
        groups: Iterable[Atom],
        at_readers: bool = False,
    ) -> _Finder:
        finder = cls(frozenset(groups), at_readers)
        params = [finder.leaf(path, axes) for path, axes in leaves.items()]
        inputs = [_Value({}, static=False)] * (len(program.in_axes) - len(params))
        finder.run(program, [*params, *inputs])
        return finder

    def leaf(self, path: str, axes: Axes) -> _Value:
        own = tuple((path, i) for i in range(len(axes)))
        zero = {atom: _with(atom, own, axes) for atom in self.on(axes)}
        return _Value(zero, leaf=own)

    def on(self, axes: Axes) -> Atoms:
        """The atoms of groups that are on these axes."""
        return frozenset(atom for e in axes for atom in atoms(e)) & self.groups

    def run(self, program: Program, inputs: Sequence[_Value]) -> list[_Value]:
        known = {var: _Value({}) for var in program.jaxpr.constvars}
        known |= dict(zip(program.jaxpr.invars, inputs, strict=True))

        def value(var: Any) -> _Value:
            return _of_literal(var.val) if isinstance(var, Literal) else known[var]

        for step in program.steps:
            operands = [value(var) for var in step.eqn.invars]
            results = self.step(step, operands)
            if not step.inner:
                static = all(x.static for x in operands)
                results = [x._replace(static=static) for x in results]
            known |= dict(zip(step.eqn.outvars, results, strict=True))
        return [value(var) for var in program.jaxpr.outvars]

    def step(self, step: Step, operands: list[_Value]) -> list[_Value]:
        kind = step.eqn.primitive.name
        if step.inner:
            return through(step, operands, self.run, _both, _entered)
        for place in (x.leaf[0] for x in operands if x.leaf):
            self.met.setdefault(place[0], len(self.met))
        if kind in PRODUCTS:
            gone, *left = _contracted(step)
            both = _pairs(operands, step)[:2]
            self.summed(step, [_along(*pair, gone) for pair in both], gone)
            pairs = [(_along(x, axes, own), own) for (x, axes), own in zip(both, left, strict=True)]
            zero = self.zero_where(pairs, any)
            return [_Value(_without(zero, _twice(step.outputs[0])))]
        if kind.startswith("reduce_") and "axes" in step.eqn.params:
            sums = kind == "reduce_sum"
            gone = tuple(step.inputs[0][i] for i in step.eqn.params["axes"])
            self.summed(step, operands if sums else [], gone)
            return [_Value(self.only(operands[0].zero if sums else {}, step.outputs[0]))]
        if kind in RANDOM:
            self.note(step, self.on(step.outputs[-1]))
        return [self.entrywise(step, operands, axes) for axes in step.outputs]

    def entrywise(self, step: Step, operands: list[_Value], axes: Axes) -> _Value:
        kind, params = step.eqn.primitive.name, step.eqn.params
        pairs = _pairs(operands, step)
        if kind in ("max", "min"):  # max(x, 0) and min(x, 6) keep zeros
            sign = 1 if kind == "max" else -1
            pairs = [(_zero_if(x, sign), own) for x, own in pairs]
        if kind in ("mul", "and"):
            zero = self.zero_where(pairs, any)
        elif kind == "div" or (kind == "integer_pow" and params["y"] > 0):
            zero = operands[0].zero
        elif kind == "concatenate":  # where a segment has the neurons at all
            zero = self.zero_where(pairs, all, moves=True)
        elif kind == "select_n":
            zero = self.zero_where(pairs[1:], all)
        elif kind in ("dynamic_slice", "gather"):
            zero = operands[0].zero
        elif kind in KEEPS_ZERO:
            zero = self.zero_where(pairs, all)
        else:
            zero = {}
        if len(operands) > 1 and kind != "concatenate":
            zero = _without(zero, _twice(axes))
        same = kind in ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy")
        leaf = operands[0].leaf if kind in ("convert_element_type", "copy") else None
        return _Value(self.only(zero, axes), operands[0].constant if same else None, leaf=leaf)

    def only(self, zero: Zero, axes: Axes) -> Zero:
        """What of it is said of neurons on these axes."""
        own = self.on(axes)
        return {atom: places for atom, places in zero.items() if atom in own}

    def zero_where(self, pairs: Sequence[_Operand], of: Any, moves: bool = False) -> Zero:
        """The atoms at which all of these values are zero, or any (`of`): by the latest leaves."""
        have = [self.on(axes) for _, axes in pairs]
        zero = {}
        for atom in frozenset[Atom]().union(*have):
            ways = [
                frozenset[Place]() if x.constant == 0 else x.zero.get(atom) if atom in own else None
                for (x, _), own in zip(pairs, have, strict=True)
                if not moves or atom in own
            ]
            known = [way for way in ways if way is not None]
            if of is any and known:
                zero[atom] = max(known, key=self.rank)
            elif of is all and len(known) == len(ways):
                zero[atom] = frozenset[Place]().union(*known)
        return zero

    def rank(self, places: frozenset[Place]) -> int:
        """How late in the data the first of these leaves is."""
        last = len(self.met)
        return min((self.met.get(path, last) for path, _ in places), default=last)

    def summed(self, step: Step, operands: list[_Value], gone: Axes) -> None:
        """Over these axes a sum is taken: it must be zero where neurons on them are pruned."""
        for atom in self.on(gone):
            ways = [x for x in operands if atom in x.zero]
            if ways:  # what was computed, or (at_readers) the kernel that reads it
                ranks = [(x.static != self.at_readers, self.rank(x.zero[atom])) for x in ways]
                way = ways[ranks.index(min(ranks))]
                self.closers[atom] = self.closers.get(atom, frozenset()) | way.zero[atom]
            else:
                self.note(step, frozenset({atom}))

    def note(self, step: Step, own: Atoms) -> None:
        if own:
            why = f"{step.eqn.primitive.name} {step.line}"
            self.found.setdefault(why, {}).update(dict.fromkeys(own))


def _entered(carry: list[_Value], xs: list[_Value]) -> tuple[list[_Value], list[_Value]]:
    """A number that a loop starts with need not stay; of what it steps over it sees one each."""
    carry = [x._replace(constant=0.0 if x.constant == 0 else None) for x in carry]
    return carry, [_of_one(x) for x in xs]


def _both(values: Sequence[_Value]) -> _Value:
    """What holds of all of these."""
    zero = {
        atom: frozenset[Place]().union(*(x.zero.get(atom, ()) for x in values))
        for atom in frozenset[Atom]().union(*(x.zero for x in values))
        if all(atom in x.zero or x.constant == 0 for x in values)
    }
    constants = {x.constant for x in values}
    constant = constants.pop() if len(constants) == 1 else None
    return _Value(zero, constant, all(x.static for x in values))


def _of_one(x: _Value) -> _Value:
    """One of the arrays that are stacked along the first axis of a value, as a scan reads."""
    return x._replace(leaf=x.leaf[1:] or None) if x.leaf else x


def _pairs(operands: Sequence[_Value], step: Step) -> list[_Operand]:
    return list(zip(operands, step.inputs, strict=True))


def _with(atom: Atom, places: Sequence[Place], axes: Axes) -> frozenset[Place]:
    """Those places whose axis has the atom."""
    return frozenset(p for p, e in zip(places, axes, strict=True) if atom in set(atoms(e)))


def _along(x: _Value, axes: Axes, some: Axes) -> _Value:
    """Of a leaf that has neurons on several axes, what is said of them on `some`."""
    if x.leaf is None:
        return x
    own = [(p, e) for p, e in zip(x.leaf, axes, strict=True) if any(e is other for other in some)]
    places, kept = [p for p, _ in own], tuple(e for _, e in own)
    return x._replace(zero={atom: _with(atom, places, kept) or old for atom, old in x.zero.items()})


def _without(zero: Zero, gone: Atoms) -> Zero:
    return {atom: places for atom, places in zero.items() if atom not in gone}


def _contracted(step: Step) -> tuple[Axes, Axes, Axes]:
    """The axes that a product sums over, and those that are left of either operand."""
    params, (lhs, rhs, *_) = step.eqn.params, step.inputs
    if step.eqn.primitive.name != "conv_general_dilated":
        (own, other), _ = dot_numbers(step.eqn)
        left = [i for i in range(len(lhs)) if i not in own]
        right = [i for i in range(len(rhs)) if i not in other]
        of = lambda axes, which: tuple(axes[i] for i in which)
        return of(lhs, own) + of(rhs, other), of(lhs, left), of(rhs, right)
    numbers = params["dimension_numbers"]
    gone = rhs[numbers.rhs_spec[1]]
    groups = () if params["feature_group_count"] == 1 else (lhs[numbers.lhs_spec[1]],)
    kept = tuple(atom for e in groups for atom in atoms(e) if atom not in set(atoms(gone)))
    return (gone,), (lhs[numbers.lhs_spec[0]], *kept), (rhs[numbers.rhs_spec[0]],)


def _twice(axes: Axes) -> Atoms:
    """The atoms on two of these axes: x[i] + y[j] is not zero where x[i] is."""
    count = Counter(atom for e in axes for atom in frozenset(atoms(e)))
    return frozenset(atom for atom, n in count.items() if n > 1)


def _zero_if(x: _Value, sign: int) -> _Value:
    """A constant that does not take part in max (sign 1) or min (-1) with zero, as zero."""
    return x._replace(constant=0.0) if x.constant is not None and sign * x.constant <= 0 else x


def _of_literal(x: Any) -> _Value:
    known = np.ndim(x) == 0 and np.issubdtype(np.result_type(x), np.number)
    return _Value({}, float(np.real(x)) if known else None)
