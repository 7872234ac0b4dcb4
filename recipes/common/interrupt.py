"""Ctrl-C and SIGTERM, heard at a point where the run can be saved."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NOTHING_MORE = "stopped; nothing more was saved: --resume goes on from the last checkpoint, if any"


class Stopped(KeyboardInterrupt):
    """A signal ended the run; the message is the line to show."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


@contextmanager
def signals_stop() -> Iterator[None]:
    """Within it SIGINT and SIGTERM raise `Stopped`, wherever the program is."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum, NOTHING_MORE)

    with _handled(stop):
        yield


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Within it SIGINT and SIGTERM only leave a note; yields a function that returns the signal.

    Training donates its state to the step that is running, so that only between steps is there
    something to save. A second signal does not wait: it raises `Stopped`.
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
