"""The folder of a run: it is never overwritten unasked, and each file is whole or absent.

Also `RecipeError`, the exception that recipes raise on purpose, and the versions of packages.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class RecipeError(ValueError):
    """A mistake that the user can put right; each line of the message says how."""


def reason(error: Exception) -> str:
    """The message of an error, on one line that is not too long."""
    said = " ".join((getattr(error, "strerror", None) or str(error) or repr(error)).split())
    for disk in map(os.strerror, FULL):  # deep in what tensorstore says
        if disk in said:
            return disk
    return said if len(said) <= 120 else f"{said[:120]} ..."


CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.md"
PLOTS = "plots"
MODEL = "model"
CHECKPOINT = "checkpoint"
BEST = "best"
PACKAGES = ("jaxprune", "jax", "flax", "optax", "numpy")


def check_out(out: Path, overwrite: bool = False, resume: bool = False) -> None:
    """Raises `RecipeError` unless a run may be written to the folder `out`. Changes nothing.

    A folder with a run needs `overwrite` (to replace it) or `resume` (to go on with it); a folder
    with anything else is never taken.
    """
    if out.exists() and not out.is_dir():
        raise RecipeError(f"--out '{out}' is a file; choose a folder")
    ancestor = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK | os.X_OK):
        raise RecipeError(f"--out '{out}' is not writable (see '{ancestor}')")
    if resume:
        if not (out / CONFIG).is_file():
            raise RecipeError(f"--resume finds no run: there is no '{out / CONFIG}'")
        if (out / SUMMARY).is_file() and not (out / CHECKPOINT).is_dir():
            raise RecipeError(f"--resume: the run in '{out}' is finished; repeat it with --config")
    elif out.exists() and any(not _is_draft(path) for path in out.iterdir()):
        if not (out / CONFIG).is_file():
            raise RecipeError(f"--out '{out}' is not empty, and not a run; choose another folder")
        if not overwrite:
            raise RecipeError(
                f"--out '{out}' already holds a run; choose another folder, go on with the run "
                "with --resume, or replace it with --overwrite"
            )


def start(out: Path, config: str, overwrite: bool = False) -> None:
    """Makes the folder, locks it, and replaces the files of an earlier run by config.yaml.

    Raises `RecipeError` for what `check_out` refuses: another process may have finished a run there
    since the last check.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock(out)
        check_out(out, overwrite)
        with _draft(out / CONFIG, config) as draft:  # where there is no room, nothing is removed
            for path in filter(_is_draft, out.iterdir()):
                if path != draft:
                    remove(path)
            for name in (METRICS, SUMMARY, REPORT, PLOTS, MODEL, CHECKPOINT, BEST, CONFIG):
                remove(out / name)
    except OSError as error:
        raise RecipeError(f"--out '{out}' is not writable: {error.strerror}") from error


_locks: dict[Path, int] = {}  # the folders that this process has locked


def lock(out: Path) -> None:
    """Locks the folder for this process, until `unlock` or its end: no second process writes to it.

    Raises `RecipeError` if another process holds the lock. A lock dies with its process.
    """
    unlock(out)
    held = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise RecipeError(
            f"another process is writing to --out '{out}'; wait for it, or choose another folder"
        ) from None
    except OSError as error:  # some network file systems have no locks
        print(
            f"--out '{out}' can't be locked ({error.strerror}): be its only user", file=sys.stderr
        )
    _locks[out.resolve()] = held


def unlock(out: Path) -> None:
    """Unlocks the folder, if this process had locked it."""
    held = _locks.pop(out.resolve(), None)
    if held is not None:
        os.close(held)


def write(path: Path, content: str | bytes) -> None:
    """Writes a file; at no time is half of it there under its name."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _draft(path, content):
        pass


@contextmanager
def _draft(path: Path, content: str | bytes) -> Iterator[Path]:
    """Writes the content to a draft beside `path`; the draft becomes `path` at the end."""
    draft = _draft_of(path)
    try:
        with writing(path):
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, raised: type[Exception] = OSError) -> Iterator[None]:
    """Within it an exception of type `raised` becomes a `RecipeError` that names the file."""
    try:
        yield
    except raised as error:  # it names no file where the disk is full
        raise RecipeError(
            f"can't write '{path}': {reason(error)}; a run that has begun goes on with --resume "
            "when that is put right"
        ) from error


def _draft_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_draft(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; numbers stay numbers, and nan or inf raise `RecipeError`."""
    if name := _not_finite(value):
        raise RecipeError(
            f"can't write '{path}': {name} is nan or inf, and JSON has neither; training has "
            "diverged, most likely: lower --learning-rate"
        )
    write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _not_finite(value: Any, name: str = "") -> str:
    """The name of a number that is nan or inf, as "arms/dense/loss/0"; "" where all are finite."""
    if isinstance(value, (dict, list, tuple)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        below = (_not_finite(part, f"{name}/{key}" if name else str(key)) for key, part in parts)
        return next(filter(None, below), "")
    return name if isinstance(value, float) and not math.isfinite(value) else ""


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line and closes the file: it survives a crash right after."""
    with writing(path), path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one; at no time is half of it there."""
    if path.is_dir() and not path.is_symlink():
        draft = _draft_of(path)
        path.replace(draft)
        shutil.rmtree(draft)
    else:
        path.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Of Python, and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a source tree
            found[package] = "not installed"
    return found


def environment() -> dict[str, str]:
    """Versions and the device: the numbers depend on them beside the configuration."""
    return {**versions(), "device": jax.local_devices()[0].device_kind}
