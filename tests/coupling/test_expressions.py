"""Axis expressions: what becomes of two that are the same axis."""

import numpy as np
import pytest

from jaxprune.coupling.expressions import (
    ONE,
    Atom,
    Prod,
    Sum,
    atoms,
    freeze,
    infer,
    kept_entries,
    places,
    resolved,
    size,
    unify,
)


def sizes(e):
    """An expression as numbers: 3, ("x", 3, 4), ("+", 3, 4)."""
    e = resolved(e)
    if isinstance(e, Atom):
        return e.size
    if isinstance(e, Prod):
        return ("x", *map(sizes, e.factors))
    return ("+", *map(sizes, e.parts))


def row(*factors):
    return Prod(tuple(Atom(n) for n in factors))


def joined(*parts):
    return Sum(tuple(Atom(n) for n in parts))


@pytest.mark.parametrize(
    ("a", "b", "common"),
    [
        (Atom(12), row(3, 4), ("x", 3, 4)),
        (row(2, 6), row(4, 3), ("x", 2, 2, 3)),
        (row(6, 4), row(3, 8), ("x", 3, 2, 4)),
        (joined(5, 7), joined(3, 9), ("+", 3, 2, 7)),
        (joined(4, 8), row(3, 4), ("+", 4, ("x", 2, 4))),
        (joined(6, 6), row(2, 6), ("+", 6, 6)),
        (Prod((Atom(2), joined(3, 3))), row(2, 6), ("x", 2, ("+", 3, 3))),
    ],
)
def test_both_are_refined_until_they_are_equal(a, b, common):
    unify(a, b, "never")
    assert sizes(a) == common
    assert set(atoms(a)) == set(atoms(b)) and not any(atom.frozen for atom in atoms(a))
    for atom in atoms(a):  # where a segment meets rows the two are written differently
        kept = {atom: np.arange(atom.size) > 0}
        np.testing.assert_array_equal(kept_entries(a, kept), kept_entries(b, kept))


@pytest.mark.parametrize(
    ("a", "b"), [(row(2, 3), row(3, 2)), (joined(5, 7), row(3, 4)), (row(4, 6), row(6, 4))]
)
def test_what_does_not_fit_is_frozen(a, b):
    unify(a, b, "cut across")
    assert all("cut across" in atom.frozen for e in (a, b) for atom in atoms(e))


def test_a_bound_atom_is_refined_wherever_it_is():
    hidden = Atom(12)
    other = Sum((hidden, Atom(2)))
    unify(hidden, row(3, 4), "")
    assert sizes(other) == ("+", ("x", 3, 4), 2)
    freeze(hidden, "late")
    assert [list(atom.frozen) for atom in atoms(other)] == [["late"], ["late"], []]


def test_an_axis_that_is_itself_one_entry_further_is_one_neuron_many_times():
    n = 2000  # more than Python's stack is deep
    first, last, body, tail = Atom(1), Atom(1), Atom(n - 1), Atom(n - 1)
    unify(Sum((first, tail)), Sum((body, last)), "h[1:] and h[:-1] are cut from h")
    unify(tail, body, "h[1:] + h[:-1]")
    assert resolved(tail) == resolved(body) == Sum((ONE,) * (n - 1))


def test_reasons_go_with_what_an_atom_becomes():
    hidden = Atom(12, "input")
    unify(hidden, row(3, 4), "")
    assert [list(atom.frozen) for atom in atoms(hidden)] == [["input"]] * 2


def test_ones_and_empty_segments_vanish():
    assert resolved(Atom(1)) == ONE and size(ONE) == 1
    assert sizes(Prod((Atom(1), Atom(3)))) == 3
    assert sizes(Sum((Atom(0), Atom(3)))) == 3
    assert sizes(Sum((Atom(1), Atom(3)))) == ("+", ("x",), 3)


def test_kept_entries_and_back():
    heads, dims, tail = Atom(2), Atom(3), Atom(2)
    e = Sum((Prod((heads, dims)), tail))
    kept = {heads: np.array([True, False]), dims: np.array([True, False, True])}
    entries = kept_entries(e, kept)
    assert entries.tolist() == [True, False, True, False, False, False, True, True]
    back: dict = {}
    assert infer(e, entries, back)
    assert {atom: own.tolist() for atom, own in back.items()} == {
        heads: [True, False],
        dims: [True, False, True],
        tail: [True, True],
    }
    assert not infer(e, np.array([True, False, True, False, True, True, True, True]), {})


def test_places():
    a, b = Atom(2), Atom(3)
    e = Sum((Prod((b, a)), a))
    assert [own.tolist() for own in places(e, a)] == [
        [0, 1, 0, 1, 0, 1, -1, -1],
        [-1, -1, -1, -1, -1, -1, 0, 1],
    ]
    assert [own.tolist() for own in places(e, b)] == [[0, 0, 1, 1, 2, 2, -1, -1]]
