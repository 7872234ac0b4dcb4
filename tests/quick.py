"""Which cases of a product the quick tests run, and which ones `full` tests run."""

import itertools

import pytest


def quick(cases, *few):
    """Cases for `parametrize`: `few` of them, or the first, are quick; the others are `full`."""
    cases = list(cases)
    few = few or cases[:1]
    return [case if case in few else pytest.param(case, marks=pytest.mark.full) for case in cases]


def pairs(rows, columns, row, column):
    """Cases (row, column): those in this row or in this column are quick, the others are `full`."""
    return [
        pytest.param(a, b, marks=() if a == row or b == column else pytest.mark.full)
        for a in rows
        for b in columns
    ]


def by_turns(rows, columns, *always):
    """Cases (row, column): each row has the columns `always`, and one of the others by turns."""
    turns = itertools.cycle(column for column in columns if column not in always)
    return [(row, column) for row in rows for column in (*always, next(turns))]
