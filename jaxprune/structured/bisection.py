"""The smallest number for which something holds."""

from __future__ import annotations

from collections.abc import Callable


def first(holds: Callable[[int], bool], last: int) -> int | None:
    """The first of 0, ..., last for which it holds, if from there on it does; None if for none.

    It goes up in eighths until it holds, and bisects the last of them: times may rise again where
    next to nothing is left, which is slow at some numbers of channels.
    """
    low = 0
    for high in sorted({last * i // 8 for i in range(9)}):
        if holds(high):
            break
        low = high + 1
    else:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
