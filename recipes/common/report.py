"""The result of a finished run: its numbers, and the same table on the terminal and in report.md.

Numbers are mean and spread over seeds, weights kept, and memory.
"""

from __future__ import annotations

import re
import resource
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from recipes.common import cli, dead, folder
from recipes.common.folder import CHECKPOINT, METRICS, REPORT, SUMMARY

if TYPE_CHECKING:
    from recipes.common.settings import Run, Settings


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


def percent(numbers: Mapping[str, Any], unit: str = " %") -> str:
    """`over_seeds` of fractions as "97.81 ± 0.12 %", with the mark of dead networks.

    One seed has no deviation: "97.81 %". A table whose title says "in %" needs no `unit`.
    """
    deviation = f" ± {100 * numbers['std']:.2f}" if len(numbers["per_seed"]) > 1 else ""
    return f"{100 * numbers['mean']:.2f}{deviation}{unit}{dead.mark(numbers)}"


def points(numbers: Mapping[str, Any]) -> str:
    """`over_seeds` of a difference of fractions in points, with its sign: "+0.28 ± 0.05"."""
    return f"{100 * numbers['mean']:+.2f} ± {100 * numbers['std']:.2f}"


def plus_minus(numbers: dict[str, Any], decimals: int, factor: float = 1) -> str:
    """A mean and its "error" as "0.12 ± 0.01", without an error that is None.

    "n/a" if the mean is None, as for barriers between networks at chance.
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


def layers_of_first(network: Any) -> str:
    """`layers` of the first network of a stack (`lanes.Network`)."""
    params, _, masks = jax.tree.map(lambda x: x[0], tuple(network))
    return layers(params, masks)


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
    """Bytes of all arrays in a pytree, or of their shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


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


class Picture(NamedTuple):
    """A figure of the report."""

    png: bytes
    caption: str


Rows = tuple[Sequence[str], Sequence[Sequence[str]]]  # (columns, rows), as in a `Writeup`


class Writeup(NamedTuple):
    """A result in words and numbers, already formatted."""

    title: str
    headline: str  # what was run, in a line
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]  # each a name and one cell per column
    pictures: Mapping[str, Picture]  # by path below the run's folder
    layers: Mapping[str, str]  # arm -> a table of the layers of its first seed, as text
    models: Sequence[str]  # paths below the run's folder
    notes: str = ""  # sentences of the last line, before the time and the memory
    saved: str = STACK  # what {models} hold
    of_layers: str = "The first seed, layer by layer"
    logged: bool = True  # whether the run has a metrics.jsonl
    more: Mapping[str, Rows] = {}  # title -> another table


def summary(config: Settings, studies: str, **numbers: Any) -> dict[str, Any]:
    """The content of summary.json: what all recipes tell, around the numbers of this one."""
    return {
        "recipe": cli.program(type(config)).rpartition(".")[2],
        "studies": studies,
        "dataset": config.dataset,
        "model": config.model,
        "seeds": config.seeds,
        **numbers,
        "peak_memory_bytes": peak_memory_bytes(),
        "environment": folder.environment(),
    }


def finish(config: Run, writeup: Writeup, summary: dict[str, Any]) -> dict[str, Any]:
    """Writes the pictures, summary.json and report.md, and prints the table: the run is finished.

    Both tell of dead networks, where the summary has any. Returns the summary.
    """
    out, signs = config.out, dead.told(summary)
    seconds, peak = summary["seconds"], summary["peak_memory_bytes"] / 1e9
    took = f"{seconds:.0f} s, peak memory {peak:.2f} GB"
    last = f"{writeup.notes}. {took}" if writeup.notes else took
    for path, picture in writeup.pictures.items():
        folder.write(out / path, picture.png)
    folder.write_json(out / SUMMARY, summary)
    text = to_markdown(writeup, signs, last, cli.again(config), summary["environment"])
    folder.write(out / REPORT, text)
    folder.remove(out / CHECKPOINT)
    folder.unlock(out)
    to_terminal(writeup, signs, last)
    print(f"Everything is in {out}: see {out / REPORT}")
    return summary


def to_terminal(writeup: Writeup, signs: Sequence[str], last: str) -> None:
    """Prints the table after its headline, then the first signs, then the last line."""
    others = len(signs) - dead.ON_TERMINAL
    rest = [f"... and {others} more: see {REPORT}"] if others > 0 else []
    lines = [*signs[: dead.ON_TERMINAL], *rest, last]
    table = terminal_table(writeup.columns, writeup.rows)
    more = [part for title, own in writeup.more.items() for part in (title, terminal_table(*own))]
    say = Console(highlight=False, markup=False).print
    say(writeup.headline, table, *more, *lines, sep="\n")


def terminal_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column holds names; the others are numbers, to the right."""
    table = Table("", *columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown."""
    table = [("", *columns), ("---", *("---:" for _ in columns)), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in table)


def in_words(environment: Mapping[str, Any]) -> str:
    """The environment on a line."""
    return ", ".join(f"{name} {value}" for name, value in environment.items())


def to_markdown(
    writeup: Writeup,
    signs: Sequence[str],
    last: str,
    command: str,
    environment: Mapping[str, Any],
) -> str:
    """The content of report.md."""
    dead_networks = "\n".join(["\nDead networks:\n", *(f"- {s}" for s in signs), ""])
    pictures = "\n\n".join(
        f"![{picture.caption}]({path})\n\n{picture.caption}"
        for path, picture in writeup.pictures.items()
    )
    more = [f"{title}:\n\n{markdown_table(*own)}\n" for title, own in writeup.more.items()]
    layers = [f"**{arm}**\n\n```\n{text}\n```" for arm, text in writeup.layers.items()]
    if layers:
        layers = [f"{writeup.of_layers}:", *layers, ""]
    joined = "\n\n".join(layers)
    models = ", ".join(f"`{path}`" for path in writeup.models)
    logged = f"Every logged point is a line of `{METRICS}`; " if writeup.logged else ""
    return f"""# {writeup.title}

{writeup.headline}.

{markdown_table(writeup.columns, writeup.rows)}
{dead_networks if signs else ""}
{"".join(f"{table}{chr(10)}" for table in more)}Run it again: `{command}`

{pictures}

{joined}{writeup.saved.format(models=models)}
{logged}{"all" if logged else "All"} numbers of this page are in `{SUMMARY}`.

{last}. {in_words(environment)}.
"""
