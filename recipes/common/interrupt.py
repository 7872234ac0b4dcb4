"""Ctrl-C and SIGTERM, heard at a point where the run can be saved."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """A signal ended the run; the message is the line to show."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


def stop_if(signum: int | None, message: str) -> None:
    """Raises `Stopped` if there was a signal."""
    if signum:
        raise Stopped(signum, message)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], int | None]]:
    """Within it SIGINT and SIGTERM only leave a note; yields a function that returns the signal.

    Training donates its state to the step that is running, so that only between steps is there
    something to save. A second signal does not wait: it raises KeyboardInterrupt.
    """
    received: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signum)
        print("\nstopping after these steps ...", file=sys.stderr)

    before = {signum: signal.signal(signum, note) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
