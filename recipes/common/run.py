"""The folder of a run: made once, never overwritten unasked, each file whole or absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from recipes.common.errors import RecipeError

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
SUMMARY = "summary.json"
REPORT = "report.md"
PLOTS = "plots"
MODEL = "model"
CHECKPOINT = "checkpoint"


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
        if not (out / CHECKPOINT).is_dir():
            raise RecipeError(f"--resume finds no checkpoint in --out '{out}'")
    elif out.exists() and any(out.iterdir()):
        if not (out / CONFIG).is_file():
            raise RecipeError(f"--out '{out}' is not empty, and not a run; choose another folder")
        if not overwrite:
            raise RecipeError(
                f"--out '{out}' already holds a run; choose another folder, or replace the run "
                "with --overwrite"
            )


def start(out: Path, config: str) -> None:
    """Makes the folder, without the files of an earlier run, and writes config.yaml."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, SUMMARY, REPORT, PLOTS, MODEL, CHECKPOINT, CONFIG):
            remove(out / name)
        write(out / CONFIG, config)
    except OSError as error:
        raise RecipeError(f"--out '{out}' is not writable: {error.strerror}") from error


def write(path: Path, content: str | bytes) -> None:
    """Writes a whole file: at no time is there half of one under its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON; numbers stay numbers, nan raises ValueError."""
    write(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds one JSON line, at once: what has been logged survives whatever comes next."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def again(program: str, out: Path) -> str:
    """The command that repeats the run in `out`."""
    return f"{program} --config {out / CONFIG} --out NEW_FOLDER"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file; [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def remove(path: Path) -> None:
    """Removes a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
