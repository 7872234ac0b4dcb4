"""What a finished run says: its numbers, and the same table on the terminal and in report.md.

Numbers are mean and spread over seeds, weights kept, and memory.
"""

from __future__ import annotations

import re
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from recipes.common import dead, folder
from recipes.common.folder import CHECKPOINT, METRICS, REPORT, SUMMARY


def over_seeds(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """{mean, std, per_seed}; std is the sample's (n - 1), 0 for one seed."""
    per_seed = np.asarray(values, np.float64)
    std = per_seed.std(ddof=1) if per_seed.size > 1 else 0.0
    return {"mean": float(per_seed.mean()), "std": float(std), "per_seed": per_seed.tolist()}


def accuracy(
    values: Sequence[float] | np.ndarray, chance: float, empty_layers: Mapping[str, int] = {}
) -> dict[str, Any]:
    """`over_seeds` of a test accuracy, with the signs of dead networks: see `dead`."""
    return over_seeds(values) | dead.signs(values, chance, empty_layers)


def percent(numbers: dict[str, Any]) -> str:
    """`over_seeds` of fractions as "97.81 ± 0.12 %"; marked if it is the accuracy of the dead.

    One seed has no deviation: "97.81 %".
    """
    deviation = f" ± {100 * numbers['std']:.2f}" if len(numbers["per_seed"]) > 1 else ""
    return f"{100 * numbers['mean']:.2f}{deviation} %{dead.mark(numbers)}"


def plus_minus(numbers: dict[str, Any], decimals: int, factor: float = 1) -> str:
    """A mean and its "error" as "0.12 ± 0.01", without an error that is None.

    "n/a" if the mean is None, as that of barriers between networks at chance.
    """
    if numbers["mean"] is None:
        return dead.NOT_MEASURED
    mean, error = f"{factor * numbers['mean']:.{decimals}f}", numbers["error"]
    return mean if error is None else f"{mean} ± {factor * error:.{decimals}f}"


def layers(params: Any, masks: Any, *forward: Any, ever_active: Any = None) -> str:
    """`jp.report` as text."""
    with warnings.catch_warnings():  # its text says the same
        warnings.simplefilter("ignore", UserWarning)
        return str(jp.report(params, masks, *forward, ever_active=ever_active))


def kept_weights(masks: Any) -> tuple[np.ndarray, int]:
    """(weights kept by each seed, int (seeds,); prunable weights of one seed) of stacked masks."""
    leaves = [np.asarray(mask) for mask in jax.tree.leaves(masks)]
    kept = np.sum([mask.reshape(len(mask), -1).sum(1) for mask in leaves], axis=0)
    return kept, sum(mask[0].size for mask in leaves)


def layer_density(masks: Any) -> dict[str, np.ndarray]:
    """{path: fraction kept by each seed (seeds,)} of stacked masks, layer 2 before layer 10."""
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(mask)
        for path, mask in jax.tree_util.tree_leaves_with_path(masks)
    }
    density = {path: mask.reshape(len(mask), -1).mean(1) for path, mask in leaves.items()}

    def numbers_as_such(path: str) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]

    return dict(sorted(density.items(), key=lambda item: numbers_as_such(item[0])))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays in a pytree."""
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the accelerator if there is one, else RSS."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "peak_bytes_in_use" in statistics:
        return int(statistics["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


STACK = (
    "The masked weights and the masks (one bit each), a stack over seeds, are in {models}: read "
    "them with `recipes.common.checkpoints.load_model`."
)


class Writeup(NamedTuple):
    """A result in words and numbers, already formatted."""

    title: str
    headline: str  # what was run, in a line
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # each a name and one cell per column
    footline: str  # what it took, in a line
    command: str  # that runs it again
    pictures: Mapping[str, str]  # path below the run's folder -> what it shows
    layers: Mapping[str, str]  # arm -> a table of the layers of its first seed, as text
    models: Sequence[str]  # paths below the run's folder
    environment: Mapping[str, str]
    saved: str = STACK  # what {models} hold
    of_layers: str = "The first seed, layer by layer"


def finish(
    out: Path, writeup: Writeup, summary: Mapping[str, Any], figures: Mapping[str, bytes]
) -> None:
    """Writes the figures, summary.json and report.md, and prints the table: the run is finished.

    Both tell of dead networks, where the summary has any.
    """
    signs = dead.told(summary)
    for path, png in figures.items():
        folder.write(out / path, png)
    folder.write_json(out / SUMMARY, summary)
    folder.write(out / REPORT, to_markdown(writeup, signs))
    folder.remove(out / CHECKPOINT)
    folder.unlock(out)
    to_terminal(writeup, signs)
    print(f"Everything is in {out}: see {out / REPORT}")


def to_terminal(writeup: Writeup, signs: Sequence[str] = ()) -> None:
    """Prints the table between its headline and its footline, and under it the first signs."""
    table = Table("", *writeup.columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in writeup.rows:
        table.add_row(*row)
    more = len(signs) - dead.ON_TERMINAL
    rest = [f"... and {more} more: see {REPORT}"] if more > 0 else []
    lines = [*signs[: dead.ON_TERMINAL], *rest, writeup.footline]
    Console(highlight=False, markup=False).print(writeup.headline, table, *lines, sep="\n")


def to_markdown(writeup: Writeup, signs: Sequence[str] = ()) -> str:
    """The content of report.md."""
    table = [("", *writeup.columns), ("---", *("---:" for _ in writeup.columns)), *writeup.rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    dead_networks = "\n".join(["\nDead networks:\n", *(f"- {s}" for s in signs), ""])
    pictures = "\n\n".join(
        f"![{text}]({path})\n\n{text}" for path, text in writeup.pictures.items()
    )
    layers = "\n\n".join(f"**{arm}**\n\n```\n{text}\n```" for arm, text in writeup.layers.items())
    models = ", ".join(f"`{path}`" for path in writeup.models)
    environment = ", ".join(f"{name} {value}" for name, value in writeup.environment.items())
    return f"""# {writeup.title}

{writeup.headline}.

{lines}
{dead_networks if signs else ""}
Run it again: `{writeup.command}`

{pictures}

{writeup.of_layers}:

{layers}

{writeup.saved.format(models=models)}
Every logged point is a line of `{METRICS}`; all numbers of this page are in `{SUMMARY}`.

{writeup.footline}. {environment}.
"""
