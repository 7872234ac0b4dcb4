"""Axis expressions: what the entries of an axis are, in terms of neurons.

    e ::= Atom(n)        n neurons, one entry each
        | Prod[e, ...]   row-major nesting: heads x head_dim, height x width x channels
        | Sum[e, ...]    segments one after another: a concatenation

Atoms are the nodes of a union-find. One that turns out to be more than n neurons in a row is bound
to a product or a sum, and is that from then on wherever it occurs: a reshape of 12 into (3, 4)
makes the atom of 12, and every axis that it is on, a product of atoms of 3 and 4.

The only operation is `unify(a, b)`: a and b are the same axis. It refines both until they are
equal, and where they can't be, it freezes all of their atoms and says why. Sizes fall with every
refinement, so that it ends.

A size may be symbolic, such as that of an exported batch: sizes are compared with == and by
divisibility (`is_less`), which are answered for those too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


class Atom:
    """Neurons of one kind, or (bound) the expression that they turned out to be.

    Attributes:
      size: how many.
      bound: what it turned out to be; None for itself.
      frozen: why none of them may be pruned, in words; a set in order, empty if they may.
    """

    __slots__ = ("bound", "frozen", "size")

    def __init__(self, size: int, why_frozen: str | None = None):
        self.size = int(size) if isinstance(size, np.integer) else size  # json takes no numpy
        self.bound: Expr | None = None
        self.frozen: dict[str, None] = {} if why_frozen is None else {why_frozen: None}


@dataclass(frozen=True, slots=True)
class Prod:
    """An axis that runs over its factors, the last one fastest."""

    factors: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """An axis of segments, one after another."""

    parts: tuple[Expr, ...]


Expr = Atom | Prod | Sum
Axes = tuple[Expr, ...]  # of a value: one expression an axis
ONE = Prod(())


def size(e: Expr, of_atom: Callable[[Atom], Any] | None = None) -> Any:
    """How many entries the axis has, or has left: `of_atom` says how many of each atom."""
    if isinstance(e, Atom):
        return e.size if of_atom is None else of_atom(e)
    inner = e.factors if isinstance(e, Prod) else e.parts
    sizes = [size(each, of_atom) for each in inner]
    return math.prod(sizes) if isinstance(e, Prod) else sum(sizes)


def is_less(a: Any, b: Any) -> bool:
    """Whether size `a` is less than `b`; symbolic sizes have no order: whether `a` divides `b`."""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    return a != b and b % a == 0


def resolved(e: Expr) -> Expr:
    """`e` as is known now: atoms unbound, no product in a product, no factor of 1, no part of 0."""
    if isinstance(e, Atom):
        if e.bound is not None:
            e.bound = resolved(e.bound)
            return e.bound
        return ONE if e.size == 1 else e
    if isinstance(e, Prod):
        factors = _flat(map(resolved, e.factors))
        return factors[0] if len(factors) == 1 else Prod(factors)
    parts = tuple(part for part in _segments(e) if size(part) != 0)
    return parts[0] if len(parts) == 1 else Sum(parts)


def _segments(e: Sum) -> Iterator[Expr]:
    """The resolved parts of `e` from left to right, no sum in a sum.

    Without recursion: `h[:, 1:] + h[:, :-1]` binds atoms to sums as deep as h has neurons.
    """
    left = list(e.parts[::-1])
    while left:
        part = left.pop()
        if isinstance(part, Atom) and part.bound is not None:
            left.append(part.bound)
        elif isinstance(part, Sum):
            left.extend(part.parts[::-1])
        else:
            part = resolved(part)  # of a product, which may turn out to be a sum
            left.extend(part.parts[::-1]) if isinstance(part, Sum) else (yield part)


def _flat(factors: Iterable[Expr]) -> Axes:
    nested = [e.factors if isinstance(e, Prod) else (e,) for e in factors]
    return tuple(e for each in nested for e in each if e != ONE)


def atoms(e: Expr) -> Iterator[Atom]:
    """The atoms of `e` from left to right, without atoms of size 1."""
    if not isinstance(e, Atom) or e.bound is not None:
        e = resolved(e)
    if not isinstance(e, Atom):
        for inner in e.factors if isinstance(e, Prod) else e.parts:
            yield from atoms(inner)
    elif e.size != 1:
        yield e


def has_single(e: Expr) -> bool:
    """Whether a segment of a concatenation is one neuron, which is no atom."""
    e = resolved(e)
    if isinstance(e, Atom):
        return False
    if isinstance(e, Prod):
        return any(map(has_single, e.factors))
    return ONE in e.parts or any(map(has_single, e.parts))


def freeze(e: Expr, why: str) -> None:
    """No neuron of `e` may be pruned."""
    for atom in atoms(e):
        atom.frozen.setdefault(why)


def unify(a: Expr, b: Expr, why: str) -> None:
    """From now on `a` and `b` are the same axis, or frozen with reason `why` if they can't be."""
    a, b = resolved(a), resolved(b)
    if size(a) != size(b):
        raise AssertionError(f"axes of {size(a)} and {size(b)} are not the same: {why}")
    if a == b or size(a) in (0, 1):
        return
    if isinstance(b, Atom):
        a, b = b, a
    if isinstance(a, Atom):
        a.bound = b
        for atom in atoms(b):
            atom.frozen |= a.frozen
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _unify_products(a, b, why)
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _unify_sums(a, b, why)
    elif isinstance(a, Sum) and isinstance(b, Prod):
        _cut(a, b, why)
    elif isinstance(a, Prod) and isinstance(b, Sum):
        _cut(b, a, why)


def _unify_products(a: Prod, b: Prod, why: str) -> None:
    """Factor by factor from the outermost; of two that differ, the smaller divides the larger."""
    left, right = list(a.factors[::-1]), list(b.factors[::-1])
    while left:
        if is_less(size(left[-1]), size(right[-1])):
            left, right = right, left
        large, small = left.pop(), right.pop()
        rest, remainder = divmod(size(large), size(small))
        if remainder != 0:
            freeze(a, why)
            freeze(b, why)
            return
        if rest == 1:
            unify(large, small, why)
        else:
            left.append(Atom(rest))
            unify(large, Prod((small, left[-1])), why)


def _unify_sums(a: Sum, b: Sum, why: str) -> None:
    """Part by part from the left; of two that differ, the larger is cut at the smaller's end."""
    left, right = list(a.parts[::-1]), list(b.parts[::-1])
    while left:
        if size(left[-1]) == size(right[-1]):
            unify(left.pop(), right.pop(), why)
            continue
        if _opened(left) or _opened(right):  # parts that an earlier cut has cut
            continue
        if not all(isinstance(size(part), int) for part in (left[-1], right[-1])):
            freeze(a, why)  # which of them ends first is not known
            freeze(b, why)
            return
        if size(left[-1]) < size(right[-1]):
            left, right = right, left
        large, small = left.pop(), right.pop()
        left.append(Atom(size(large) - size(small)))
        unify(large, Sum((small, left[-1])), why)


def _opened(parts: list[Expr]) -> bool:
    """Whether the last of `parts` was a sum; if so, its parts now stand in its place."""
    last = parts[-1]
    while isinstance(last, Atom) and last.bound is not None:
        last = last.bound
    if isinstance(last, Sum):
        parts[-1:] = last.parts[::-1]
    return isinstance(last, Sum)


def _cut(whole: Sum, product: Prod, why: str) -> None:
    """Cuts the outermost factor of the product where the parts end, if they end between rows."""
    outermost, row = product.factors[0], Prod(product.factors[1:])
    if any(size(part) % size(row) != 0 for part in whole.parts):
        freeze(whole, why)
        freeze(product, why)
        return
    rows = tuple(Atom(size(part) // size(row)) for part in whole.parts)
    unify(outermost, Sum(rows), why)
    for part, n_rows in zip(whole.parts, rows, strict=True):
        unify(part, Prod((n_rows, row)), why)


def kept_entries(e: Expr, kept: Mapping[Atom, Any], xp: Any = np) -> Any:
    """Bool (size,): which entries of the axis are left, if the neurons in `kept` are.

    Args:
      kept: bool (size,) by atom; all neurons of an atom that is not there are kept.
      xp: `numpy`, or `jax.numpy` for traced `kept`.
    """
    e = resolved(e)
    if isinstance(e, Atom):
        return kept[e] if e in kept else xp.ones(e.size, bool)
    if isinstance(e, Sum):
        if not e.parts:
            return xp.zeros(0, bool)
        return xp.concatenate([kept_entries(part, kept, xp) for part in e.parts])
    entries = xp.ones(1, bool)
    for factor in e.factors:
        entries = (entries[:, None] & kept_entries(factor, kept, xp)[None]).reshape(-1)
    return entries


def places(e: Expr, atom: Atom) -> Iterator[np.ndarray]:
    """Int (size,) for each time that `atom` is in `e`: its neuron at each entry, or -1 for none.

    Where a neuron is not among the entries it has -1 too: in Sum[a, b], the neurons of a are at
    the entries of the first segment only.
    """
    e = resolved(e)
    if e is atom:
        yield np.arange(atom.size)
    elif isinstance(e, Sum):
        ends = np.cumsum([size(part) for part in e.parts])
        for part, end in zip(e.parts, ends, strict=True):
            for neurons in places(part, atom):
                entries = np.full(ends[-1], -1)
                entries[end - len(neurons) : end] = neurons
                yield entries
    elif isinstance(e, Prod):
        for i, factor in enumerate(e.factors):
            outer, inner = size(Prod(e.factors[:i])), size(Prod(e.factors[i + 1 :]))
            for neurons in places(factor, atom):
                yield np.tile(np.repeat(neurons, inner), outer)


def infer(e: Expr, entries: np.ndarray, kept: dict[Atom, np.ndarray]) -> bool:
    """Puts into `kept` which neurons of each atom are left, from the entries of an axis.

    The inverse of `kept_entries`: False if that does not give `entries` back. Atoms that `kept` has
    already do not change.
    """
    e = resolved(e)
    if isinstance(e, Atom):
        return np.array_equal(kept.setdefault(e, entries), entries)
    if isinstance(e, Sum):
        ends = np.cumsum([size(part) for part in e.parts])[:-1]
        pairs = zip(e.parts, np.split(entries, ends), strict=True)
        return all(infer(part, segment, kept) for part, segment in pairs)
    grid = entries.reshape([size(factor) for factor in e.factors])
    for axis, factor in enumerate(e.factors):
        others = tuple(a for a in range(grid.ndim) if a != axis)
        if not infer(factor, np.asarray(grid.any(others)), kept):
            return False
    return np.array_equal(kept_entries(e, kept), entries)


def transfer(
    e: Expr, other: Expr, others: Mapping[Atom, np.ndarray], kept: dict[Atom, np.ndarray]
) -> bool:
    """Puts into `kept`, for each atom of `e`, what `others` have for its counterpart in `other`.

    False, and `kept` does not change, unless the two are made up alike.
    """
    pairs = _counterparts(resolved(e), resolved(other))
    if pairs is None:
        return False
    new = {atom: others.get(old, np.ones(old.size, bool)) for atom, old in pairs}
    if not all(np.array_equal(kept.get(atom, left), left) for atom, left in new.items()):
        return False
    kept.update(new)
    return True


def _counterparts(e: Expr, other: Expr) -> list[tuple[Atom, Atom]] | None:
    """The pairs of atoms in the same places, or None if the two differ in make or size."""
    if type(e) is not type(other) or size(e) != size(other):
        return None
    if isinstance(e, Atom) and isinstance(other, Atom):
        return [(e, other)]
    inner = [x.factors if isinstance(x, Prod) else x.parts for x in (e, other)]  # type: ignore[union-attr]
    if len(inner[0]) != len(inner[1]):
        return None
    pairs = [_counterparts(resolved(a), resolved(b)) for a, b in zip(*inner, strict=True)]
    return None if None in pairs else [pair for each in pairs for pair in each or ()]
