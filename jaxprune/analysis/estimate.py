"""A number that is known to some error."""

from __future__ import annotations

from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A mean, and its standard error: scalars, or trees of arrays alike."""

    mean: Any
    standard_error: Any
