"""The studies, one line each: `python -m recipes`."""

from __future__ import annotations

import ast
from pathlib import Path

from rich.console import Console
from rich.table import Table


def studies() -> dict[str, str]:
    """Name -> the first line of its docstring; imports no recipe."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]
        found[path.stem] = first.partition(": `python -m")[0].rstrip(".") + "."
    return found


def main() -> None:
    """Prints the table, one line for each recipe."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, what in studies().items():
        table.add_row(f"  {name}", what)
    said = "\n`python -m recipes.NAME --help` tells its flags."
    Console(highlight=False).print("python -m recipes.NAME, where NAME is\n", table, said, sep="\n")


if __name__ == "__main__":
    main()
