"""Progress on the terminal, and Ctrl-C and SIGTERM.

Progress goes to stderr, so that stdout holds only results. A signal takes effect where the run can
be saved.
"""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

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
    """Shows that `step` steps are done, and a few words."""

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


@contextmanager
def counted(description: str, steps: int) -> Iterator[Callable[[str], None]]:
    """`progress` that counts: yields a function to call with a few words after each step."""
    with progress(description, steps) as show:
        done = itertools.count(1)
        yield lambda words: show(next(done), words)


def _lines(description: str, steps: int) -> Show:
    shown = 0

    def show(step: int, words: str) -> None:
        nonlocal shown
        if step * 10 // steps > shown or step == steps:
            shown = step * 10 // steps
            print(f"{description} {step}/{steps}  {words}", file=sys.stderr, flush=True)

    return show


SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTHING_MORE = "stopped; nothing more was saved: --resume goes on from the last checkpoint, if any"


class Stopped(KeyboardInterrupt):
    """A signal ended the run; the message is the line to show."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextmanager
def signals_stop() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise `Stopped` at once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, NOTHING_MORE)

    with _handled(stop):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Within it SIGINT and SIGTERM only leave a note; yields a function that returns the signal.

    A running step owns the memory of its state: only between steps can a run be saved. A second
    signal raises `Stopped` at once.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            raise Stopped(signum, NOTHING_MORE)
        received.append(signum)
        print("\nstopping after these steps ...", file=sys.stderr)

    with _handled(note):
        yield lambda: received[0] if received else None


@contextmanager
def _handled(handler: Any) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)
