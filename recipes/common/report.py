"""What a finished run says: the same table on the terminal and in report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from recipes.common import dead, folder
from recipes.common.folder import CHECKPOINT, METRICS, REPORT, SUMMARY

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
