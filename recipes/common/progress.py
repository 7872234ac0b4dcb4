"""What a person sees while a recipe runs; on stderr, so that stdout holds only results."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=steps, completed=start, words="compiling")
        yield lambda step, words: bar.update(task, completed=step, words=words)


def _lines(description: str, steps: int) -> Show:
    shown = 0

    def show(step: int, words: str) -> None:
        nonlocal shown
        if step * 10 // steps > shown or step == steps:
            shown = step * 10 // steps
            print(f"{description} {step}/{steps}  {words}", file=sys.stderr, flush=True)

    return show
