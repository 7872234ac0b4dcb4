"""What a benchmark says: the same tables on the terminal and in report.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from recipes.benchmarks.section import Figure, Section

FIGURE_COLUMNS = ("measured", "target", "aim", "")
CAPTION = """\
Ratios to the first line of each table: medians, and a whisker between the quartiles. The grey band
is noise. A black tick is what was asked for: met where the bar is blue, missed where it is orange.\
"""
WIDTH = 110  # of tables that go to a file
NOTE = """\
The cells of a table are timed in one process, in another random order each round; a ratio is one
of two times of the same round: the median and its quartiles. Of two identical programs (A/A) one
is the baseline, and the other's quartiles (or their inverses) are noise: an idle step is held to
it. Updates are those of a rising sparsity, one after the other. `temp` is what a program needs
beside its arguments and results, in sizes of the params. Slow cells are in few rounds.\
"""


def to_terminal(section: Section) -> None:
    """Prints one section."""
    _print(section.headline, section.columns, section.rows)


def figures_to_terminal(figures: Sequence[Figure]) -> None:
    """Prints what was asked for beside what was measured."""
    if figures:
        _print("What was asked for", FIGURE_COLUMNS, _figure_rows(figures))


def to_markdown(
    sections: Sequence[Section],
    picture: str | None,
    summary_file: str,
    command: str,
    environment: Mapping[str, object],
) -> str:
    """The content of report.md; `picture` is its path below the run's folder."""
    figures = [figure for section in sections for figure in section.figures]
    return "\n".join(
        (
            "# Benchmark",
            "",
            ", ".join(f"{name} {value}" for name, value in environment.items()) + ".",
            "",
            f"Run it again: `{command}`",
            *(_markdown("What was asked for", FIGURE_COLUMNS, _figure_rows(figures))),
            *((f"\n![Ratios]({picture})\n\n{CAPTION}",) if picture else ()),
            *(
                line
                for section in sections
                for line in _markdown(section.headline, section.columns, section.rows)
            ),
            "",
            NOTE,
            "",
            f"All numbers are in `{summary_file}`.",
            "",
        )
    )


def _figure_rows(figures: Sequence[Figure]) -> list[list[str]]:
    return [
        [
            figure.name,
            f"{figure.measured:.3g}",
            f"{'≥' if figure.target.at_least else '≤'}{figure.target.bound:.3g}",
            "" if figure.target.aim is None else f"{figure.target.aim:g}",
            "met" if figure.is_met else "missed",
        ]
        for figure in figures
    ]


def _print(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table("", *columns, box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(f"[bold]{title}", table, sep="\n")


def _markdown(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    for row in (("", *columns), ("---", *("---:" for _ in columns)), *rows):
        yield f"| {' | '.join(row)} |"
