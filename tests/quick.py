"""Which cases of a product the quick tests run; `.ci/run` runs all."""

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
