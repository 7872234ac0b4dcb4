"""Where a masked network and a compacted one differ, read off the program.

A pruned neuron has zero weights in the masked network and is not there in the compacted one. The
two compute the same as long as every sum over the neuron's axis adds zero for it. That is so where
weights of the neuron take part in the product; where they don't, the values must be zero. Layer
norm with E[x^2] - E[x]^2 is exact, with E[(x - E[x])^2] it is not: a pruned x is zero, x - E[x] is
not. A softmax over neurons counts exp(0) for a pruned one.

The same walk finds which zeros are enough (`closers`): of conv -> norm -> relu the norm's scale and
bias, whose zeros close a neuron for all that reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxprune.coupling.expressions import Atom, Axes, atoms
from jaxprune.coupling.reader import Program, Step
from jaxprune.programs.interpret import enter, walk
from jaxprune.programs.primitives import Side, is_zero, known_number, rule_of, sides, zero_like

Atoms = frozenset[Atom]
Place = tuple[str, int]  # the path of a leaf, and an axis of it
Zero = dict[Atom, frozenset[Place]]

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
    differ = _Finder.of(program, leaves, groups).differ
    return {why: tuple(neurons) for why, neurons in differ.items()}


def closers(
    program: Program,
    leaves: Mapping[str, Axes],
    groups: Iterable[Atom],
    at_readers: bool = False,
) -> dict[Atom, tuple[Place, ...]]:
    """For each atom the axes of leaves on which zeros are enough to close its neurons.

    All that reads a neuron then reads zero. The latest such leaves are taken: a norm's scale and
    bias, not the kernel before it. Where no leaf before a kernel can make the neuron zero, since
    f(0) is not zero or the neuron is an input's, it is the rows of that kernel. With `at_readers`
    it is the rows of every kernel that reads the neuron.

    Args: as for `differences`, which has the neurons that can't be closed.
    """
    finder = _Finder.of(program, leaves, groups, at_readers)
    return {
        atom: tuple(sorted(places, key=lambda place: (finder.rank(frozenset({place})), place)))
        for atom, places in finder.closers.items()
    }


_Operand = tuple[_Value, Axes]
_KEEPS_CONSTANT = ("broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "copy")


class _Finder:
    def __init__(self, groups: Atoms, at_readers: bool):
        self.groups, self.at_readers = groups, at_readers
        self.differ: dict[str, dict[Atom, None]] = {}
        self.closers: Zero = {}
        self.met: dict[str, int] = {}  # the leaves in the order of the data
        self.known: dict[Axes, Atoms] = {}

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
        places = tuple((path, i) for i in range(len(axes)))
        return _Value({atom: _with(atom, places, axes) for atom in self.on(axes)}, leaf=places)

    def on(self, axes: Axes) -> Atoms:
        """The atoms of groups that are on these axes."""
        if axes not in self.known:
            self.known[axes] = frozenset(atom for e in axes for atom in atoms(e)) & self.groups
        return self.known[axes]

    def run(self, program: Program, inputs: Sequence[_Value]) -> list[_Value]:
        return walk(program, inputs, self.step, _of_constant, program.steps)

    def step(self, step: Step, operands: list[_Value]) -> list[_Value]:
        if step.inner:
            return enter(step.eqn, step.inner, operands, self.run, _both, _begin)
        for place in (x.leaf[0] for x in operands if x.leaf):
            self.met.setdefault(place[0], len(self.met))
        static = all(x.static for x in operands)
        return [x._replace(static=static) for x in self.results(step, operands)]

    def results(self, step: Step, operands: list[_Value]) -> list[_Value]:
        kind, product = step.eqn.primitive.name, sides(step.eqn)
        if product is not None:
            contracted, *left = _contracted(step, product)
            pairs = _pairs(operands, step)[:2]
            self.summed(step, [_along(*pair, contracted) for pair in pairs], contracted)
            pairs = [(_along(*pair, some), some) for pair, some in zip(pairs, left, strict=True)]
            zero = self.zero_where(pairs, any)
            return [_Value(_without(zero, _twice(step.outputs[0])))]
        if kind.startswith("reduce_") and "axes" in step.eqn.params:
            summands = operands if kind == "reduce_sum" else []
            self.summed(step, summands, tuple(step.inputs[0][i] for i in step.eqn.params["axes"]))
            return [_Value(self.only(x.zero, step.outputs[0])) for x in summands] or [_Value({})]
        if kind in RANDOM:
            self.note(step, self.on(step.outputs[-1]))
        zero = self.zeros(step, operands)
        constant = operands[0].constant if kind in _KEEPS_CONSTANT else None
        leaf = operands[0].leaf if kind in ("convert_element_type", "copy") else None
        once = len(operands) > 1 and kind != "concatenate"
        return [_Value(self.only(zero, axes, once), constant, leaf=leaf) for axes in step.outputs]

    def zeros(self, step: Step, operands: list[_Value]) -> Zero:
        """Where the results of an equation are zero."""
        rule, pairs = rule_of(step.eqn), _pairs(operands, step)
        if not any(x.zero or x.constant == 0 for x in operands):
            return {}
        if rule.zeros == "any":
            return self.zero_where(pairs, any)
        if rule.zeros == "first":
            return operands[0].zero
        if rule.zeros == "cases":
            return self.zero_where(pairs[1:], all)
        if rule.zeros == "each":  # of a concatenation, where a segment has the neurons at all
            return self.zero_where(pairs, all, moves=step.eqn.primitive.name == "concatenate")
        if rule.elementwise is None:
            return {}
        # if f(0, c) = 0, the result is zero where the operands that are no constants are
        zero = self.zero_where([pair for pair in pairs if pair[0].constant is None], all)
        if not zero:
            return {}
        numbers = [_number(x, var.aval) for x, var in zip(operands, step.eqn.invars, strict=True)]
        return zero if is_zero(step.eqn, numbers) else {}

    def only(self, zero: Zero, axes: Axes, once: bool = False) -> Zero:
        """The zeros of neurons on these axes; if `once`, of those on one of the axes only."""
        if not zero:
            return {}
        here = self.on(axes) - _twice(axes) if once else self.on(axes)
        return {atom: places for atom, places in zero.items() if atom in here}

    def zero_where(self, pairs: Sequence[_Operand], of: Any, moves: bool = False) -> Zero:
        """The atoms at which all of these values are zero, or any (`of`): by the latest leaves."""
        on = [self.on(axes) for _, axes in pairs]
        zero = {}
        for atom in frozenset[Atom]().union(*on):
            ways = [
                frozenset[Place]() if x.constant == 0 else x.zero.get(atom) if is_on else None
                for (x, _), is_on in zip(pairs, (atom in atoms_of for atoms_of in on), strict=True)
                if not moves or is_on
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

    def summed(self, step: Step, operands: list[_Value], axes: Axes) -> None:
        """A sum over these axes: it must be zero where neurons on them are pruned."""
        for atom in self.on(axes):
            ways = [x for x in operands if atom in x.zero]
            if ways:  # what was computed, or (at_readers) the kernel that reads it
                ranks = [(x.static != self.at_readers, self.rank(x.zero[atom])) for x in ways]
                way = ways[ranks.index(min(ranks))]
                self.closers[atom] = self.closers.get(atom, frozenset()) | way.zero[atom]
            else:
                self.note(step, frozenset({atom}))

    def note(self, step: Step, neurons: Atoms) -> None:
        if neurons:
            why = f"{step.eqn.primitive.name} {step.line}"
            self.differ.setdefault(why, {}).update(dict.fromkeys(neurons))


def _begin(carry: list[_Value], xs: list[_Value]) -> tuple[list[_Value], list[_Value]]:
    """A number that a loop starts with may change; of a stack a turn reads one layer."""
    carry = [x._replace(constant=0.0 if x.constant == 0 else None) for x in carry]
    return carry, [_of_one(x) for x in xs]


def _both(values: Sequence[_Value]) -> _Value:
    """The facts that are true of all of these."""
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
    """The places whose axis has the atom."""
    return frozenset(p for p, e in zip(places, axes, strict=True) if atom in set(atoms(e)))


def _along(x: _Value, axes: Axes, some: Axes) -> _Value:
    """A leaf may have neurons on several of its axes: of these, the places on the axes `some`."""
    if x.leaf is None:
        return x
    pairs = [(p, e) for p, e in zip(x.leaf, axes, strict=True) if any(e is s for s in some)]
    places, exprs = [p for p, _ in pairs], tuple(e for _, e in pairs)
    return x._replace(
        zero={atom: _with(atom, places, exprs) or old for atom, old in x.zero.items()}
    )


def _without(zero: Zero, gone: Atoms) -> Zero:
    return {atom: places for atom, places in zero.items() if atom not in gone}


def _contracted(step: Step, product: tuple[Side, Side]) -> tuple[Axes, Axes, Axes]:
    """The axes that a product sums over, and the axes of either operand that are left."""
    pairs = list(zip(step.inputs[:2], product, strict=True))
    first, second = (tuple(axes[i] for i in side.contracted) for axes, side in pairs)
    left, right = (
        tuple(axis for i, axis in enumerate(axes) if i not in (*side.contracted, *side.window))
        for axes, side in pairs
    )
    if step.eqn.primitive.name != "conv_general_dilated":
        return first + second, left, right
    if step.eqn.params["feature_group_count"] != 1:  # channels are groups x inputs of a group
        inputs = {*atoms(second[0])}
        left += tuple(atom for atom in atoms(first[0]) if atom not in inputs)
    return second, left, right


def _twice(axes: Axes) -> Atoms:
    """The atoms on two of these axes: x[i] + y[j] is not zero where x[i] is."""
    once, twice = set[Atom](), set[Atom]()
    for e in axes:
        here = set(atoms(e))
        twice |= once & here
        once |= here
    return frozenset(twice)


def _of_constant(x: Any, atom: Any) -> _Value:
    number = known_number(x, atom.aval)
    return _Value({}, None if number is None else float(np.real(number)))


def _number(x: _Value, aval: Any) -> Any:
    """The constant, or zero, which the value is where neurons are pruned."""
    zero = zero_like(aval)
    return zero if x.constant is None or zero is None else np.asarray(x.constant, zero.dtype)
