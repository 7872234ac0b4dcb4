"""The style of figures: colors for all eyes, and curves with a band over seeds.

Matplotlib is imported when something is drawn, never before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#808080",
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": 200,
}
# From the palette of Okabe and Ito (2008): told apart by all eyes, and in print.
COLORS = ("#555555", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")

STROKES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))  # lines, markers

Curve = tuple[Sequence[float], np.ndarray]  # steps (points,), values (points, seeds)


@contextmanager
def drawing(who: str, **style: Any) -> Iterator[None]:
    """A context in which figures have `STYLE` and `style`.

    Raises:
      ImportError: without matplotlib.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError(
            f"{who} needs matplotlib: pip install matplotlib. Without it, print the numbers, or "
            "draw them with another package."
        ) from error
    settings: Any = {**STYLE, **style}
    with rc_context(settings):
        yield


class Look(NamedTuple):
    """The color, line and marker of an arm."""

    color: str
    line: str
    marker: str


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """The look of each arm, the same in all figures of a run.

    The first word of its name decides the color; the rest of the name, such as a width, decides the
    dash and the marker. If there are more first words than colors, dashes tell them apart too.
    """
    arms = list(arms)
    kinds, variants = (list(dict.fromkeys(arm.partition(" ")[i] for arm in arms)) for i in (0, 2))

    def look(arm: str) -> Look:
        kind, variant = kinds.index(arm.partition(" ")[0]), variants.index(arm.partition(" ")[2])
        again, color = divmod(kind, len(COLORS))
        return Look(COLORS[color], *STROKES[(variant + again) % len(STROKES)])

    return {arm: look(arm) for arm in arms}


def band(
    axes: Axes, curve: Curve, label: str, look: Look, points: bool = False, scale: float = 100
) -> None:
    """Draws the mean over seeds, in percent by default, and the range over seeds."""
    steps, values = np.asarray(curve[0]), scale * np.asarray(curve[1])
    style = look.line + (look.marker if points else "")
    axes.plot(steps, values.mean(1), style, color=look.color, label=label, markersize=4)
    low, high = values.min(1), values.max(1)
    axes.fill_between(steps, low, high, color=look.color, alpha=0.18, linewidth=0)


def steps_locator(most: int) -> MaxNLocator:
    """Round numbers of steps, at most so many."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most, steps=[1, 2, 2.5, 4, 5, 10], integer=True)
