"""The files of a folder as windows of bytes: what a network reads that tells the type of a file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recipes.common.folder import RecipeError


class Window(NamedTuple):
    """What is read of a file: its first and last bytes, without white space at both ends."""

    first: int  # bytes
    last: int
    block: int  # bytes from each end, in which the window lies once white space is gone
    padding: int  # the number in place of a byte that is not there
    least: int  # bytes that a file has, in its block and without white space


class Files(NamedTuple):
    """Files with windows that differ.

    Attributes:
      paths: in the order of the windows.
      windows: int32 (n, first + last).
    """

    paths: list[Path]
    windows: np.ndarray

    @property
    def extensions(self) -> list[str]:
        """Such as ".py"; "" for none."""
        return [path.suffix.lower() for path in self.paths]

    def part(self, start: int, end: int) -> Files:
        """The files from `start` to `end`."""
        return Files(self.paths[start:end], self.windows[start:end])


def read(
    folders: Sequence[Path],
    window: Window,
    seed: int,
    most: int | None = None,
    per_extension: int | None = None,
    without: Files | None = None,
) -> Files:
    """Files of all folders below `folders`, in random order, with windows that differ.

    Links, unreadable files, files of fewer than `least` bytes and windows that were met before are
    left out. The files depend on the seed and on what lies in the folders.

    Args:
      most, per_extension: at most so many files, in all and of an extension; None for all.
      without: files whose windows are left out.

    Raises:
      RecipeError: if a folder is none, or no file is left.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RecipeError(f"--files '{folder}' is no folder")
    paths = np.array(sorted({path for folder in folders for path in _below(folder)}), object)
    counts: dict[str, int] = defaultdict(int)
    met = set() if without is None else {row.tobytes() for row in without.windows}
    found: dict[bytes, Path] = {}
    for path in map(Path, np.random.default_rng(seed).permutation(paths)):
        if len(found) == most:
            break
        if counts[path.suffix.lower()] == per_extension:
            continue
        row = _window_of(path, window)
        if row is not None and (key := row.tobytes()) not in met:
            met.add(key)
            found[key] = path
            counts[path.suffix.lower()] += 1
    if not found:
        raise RecipeError(
            f"--files {' '.join(map(str, folders))} has no file of {window.least} bytes or more"
        )
    rows = np.stack([np.frombuffer(row, np.int32) for row in found])
    order = np.random.default_rng(seed).permutation(len(rows))
    kept = list(found.values())
    return Files([kept[i] for i in order], rows[order])


def window_of(content: bytes, size: int, window: Window) -> np.ndarray | None:
    """The window int32 (first + last,) of a file of `size` bytes; None for too few bytes.

    Args:
      content: the whole file, or its first and last `block` bytes after each other.
      size: of the file.
    """
    n = min(window.block, size)
    head, tail = content[:n].lstrip(), content[len(content) - n :].rstrip()
    row = np.full(window.first + window.last, window.padding, np.int32)
    first = np.frombuffer(head[: window.first], np.uint8)
    last = np.frombuffer(tail[max(len(tail) - window.last, 0) :], np.uint8)
    row[: len(first)] = first
    row[len(row) - len(last) :] = last
    return row if len(first) >= window.least else None


def _below(folder: Path) -> list[str]:
    """All files below a folder; links are not followed."""
    found = []
    for at, folders, names in os.walk(folder):
        folders.sort()
        found += [path for name in names if not os.path.islink(path := os.path.join(at, name))]
    return found


def _window_of(path: Path, window: Window) -> np.ndarray | None:
    try:
        size = os.stat(path).st_size
        if size < window.least or not os.path.isfile(path):
            return None
        with open(path, "rb") as file:
            content = file.read(window.block)
            if size > window.block:
                file.seek(max(size - window.block, window.block))
                rest = file.read(window.block)
                content += rest
    except OSError:
        return None
    return window_of(content, size, window)
