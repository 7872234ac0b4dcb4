"""What a person sees while a recipe runs; on stderr, so that stdout holds only results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)


class Show(Protocol):
    """Show that `step` steps are done, and a few words on how it goes."""

    def __call__(self, step: int, words: str) -> None: ...


@contextmanager
def progress(description: str, steps: int, start: int = 0) -> Iterator[Show]:
    """A progress bar on a terminal; elsewhere (a log file) one line per tenth of the way."""
    if not console.is_terminal:
        yield _lines(description, steps)
        return
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    task = bar.add_task(description, total=steps, completed=start)
    below = Text("compiling", style="dim")  # on its own line: there is room on 80 columns

    def show(step: int, words: str) -> None:
        bar.update(task, completed=step)
        below.plain = words

    with Live(Group(bar, below), console=console):
        yield show


def _lines(description: str, steps: int) -> Show:
    shown = 0

    def show(step: int, words: str) -> None:
        nonlocal shown
        if step * 10 // steps > shown or step == steps:
            shown = step * 10 // steps
            print(f"{description} {step}/{steps}  {words}", file=sys.stderr, flush=True)

    return show
