"""The pictures of the README, from runs: `python -m recipes.figures --help`.

Trains nothing: it reads the folders that `recipes.gmp`, `recipes.connectivity` and `recipes.bench`
wrote, and draws three pictures from their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recipes.common import cli, folder
from recipes.common.figures import pairs, style
from recipes.common.figures.gallery import latency
from recipes.common.figures.pairs import Matrix
from recipes.common.folder import RecipeError
from recipes.gmp import pruning_steps

FOLDER = Path(__file__).parents[1] / ".docs" / "pages" / "figures"
COMMANDS = {
    "gmp": "python -m recipes.gmp --out {}",
    "connectivity": "python -m recipes.connectivity --out {}",
    "bench": "python -m recipes.bench --only compact --models lenet conv --out {}",
}
NAMES = {"lenet": "LeNet-300-100", "conv": "Conv net"}


@dataclass(frozen=True)
class Config:
    """The three pictures of the README, from finished runs."""

    gmp: Path = Path("runs/gmp")
    """A run of recipes.gmp: accuracy and sparsity over the steps, a band over seeds."""
    connectivity: Path = Path("runs/connectivity")
    """A run of recipes.connectivity: barriers between all seeds."""
    bench: Path = Path("runs/bench")
    """A run of recipes.bench with `compact`: time before and after."""
    out: Path = FOLDER
    """The folder to write to; pictures that are there are replaced."""


def figures(config: Config) -> list[Path]:
    """Reads the runs, writes the pictures; returns their files."""
    drawn = {  # all are drawn before one is written
        "training.png": band(config.gmp),
        "barriers.png": barriers(config.connectivity),
        "latency.png": latency(compacted(config.bench)),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    for name, png in drawn.items():
        folder.write(config.out / name, png)
        print(config.out / name)
    return [config.out / name for name in drawn]


def band(out: Path) -> bytes:
    """Mean and range over seeds of gradual pruning and its dense twin."""
    asked, summary = config_of(out, "gmp"), summary_of(out, "gmp")
    history = folder.read_lines(out / folder.METRICS)
    accuracy = {arm: style.curve(history, arm, "test_accuracy") for arm in ("dense", "sparse")}
    sparsity = {"sparse": style.curve(history, "sparse", "sparsity")}
    between = pruning_steps(asked["begin"], asked["end"], summary["steps"])
    return style.training_curves(accuracy, sparsity, between)


def barriers(out: Path) -> bytes:
    """By how much the error rises between every two seeds, dense and pruned."""
    arms = summary_of(out, "connectivity")["arms"]
    errors = {arm: 100 * np.asarray(own["error_barrier"]["matrix"]) for arm, own in arms.items()}
    highest = max(error.max() for error in errors.values())  # one scale for both
    maps = {
        f"Error barrier (points), {arm}": Matrix(error, high=highest)
        for arm, error in errors.items()
    }
    return pairs.heat_maps(maps)


def compacted(out: Path) -> dict[str, Mapping[str, Any]]:
    """{network: the cells of its benchmark} at the largest batch, of those that were timed."""
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    for name, section in summary_of(out, "bench")["sections"].items():
        kind, *what = name.split()
        if kind == "compact":
            model, batch = what[0], int(what[1])
            if batch > found.get(model, (0,))[0]:
                found[model] = batch, section["cells"]
    if not found:
        raise RecipeError(f"'{out}' has not timed `compact`: {_command('bench', out)}")
    return {
        f"{NAMES.get(model, model)}, batch of {batch}": cells
        for model, (batch, cells) in found.items()
    }


def summary_of(out: Path, recipe: str) -> dict[str, Any]:
    """summary.json of a run of this recipe; `RecipeError` says how to make one."""
    try:
        found = json.loads((out / folder.SUMMARY).read_text())
    except (OSError, ValueError):
        raise RecipeError(
            f"--{recipe} '{out}' holds no finished run: {_command(recipe, out)}"
        ) from None
    if found.get("recipe") != recipe:
        raise RecipeError(
            f"--{recipe} '{out}' is a run of recipes.{found.get('recipe')}: {_command(recipe, out)}"
        )
    return found


def config_of(out: Path, recipe: str) -> dict[str, Any]:
    """config.yaml of a run of this recipe."""
    summary_of(out, recipe)
    return yaml.safe_load((out / folder.CONFIG).read_text())


def _command(recipe: str, out: Path) -> str:
    return COMMANDS[recipe].format(out) + " makes one"


main = cli.command(Config, figures)

if __name__ == "__main__":
    main()
