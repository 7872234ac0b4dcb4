"""Models of finished runs, which another recipe takes in place of training its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.common import checkpoints, cli, flags, folder, lanes
from recipes.common.folder import RecipeError


def run_of(kind: type, path: str) -> Any:
    """The configuration, of some kind, of a finished run; its `out` is the path.

    Raises `RecipeError` for a folder without a finished run.
    """
    out = Path(path)
    if not (out / folder.SUMMARY).is_file():
        recipe = kind.__module__
        raise RecipeError(f"--trained: there is no finished run of {recipe} in '{path}'")
    return replace(cli.from_yaml(kind, out / folder.CONFIG), out=out)


def of_runs(kind: type, paths: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """What the runs say of some flags, by name; raises `RecipeError` for runs that differ."""
    runs = [run_of(kind, path) for path in paths]
    for run in runs:
        for name in names:
            if getattr(run, name) != getattr(runs[0], name):
                raise RecipeError(
                    f"--trained: {flags.flag_of(name)} is {getattr(runs[0], name)} in "
                    f"'{runs[0].out}' and {getattr(run, name)} in '{run.out}'"
                )
    return {name: getattr(run, name) for run in runs[:1] for name in names}


def loaded(paths: Sequence[str]) -> Any:
    """The params of all runs, one stack."""
    models = (checkpoints.load_model(Path(path) / folder.MODEL) for path in paths)
    return lanes.join(*(params for params, *_ in models))
