"""Executes notebooks and stores them with their outputs: `python -m tests.colabs [01 04 ...]`."""

from __future__ import annotations

import sys
import time

import nbformat

from tests.colabs.notebooks import PATHS, execute, read


def main(beginnings: list[str]) -> None:
    for path in PATHS:
        if beginnings and not path.stem.startswith(tuple(beginnings)):
            continue
        began = time.perf_counter()
        notebook = execute(read(path))
        nbformat.write(notebook, path)
        size = path.stat().st_size / 1000
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {size:.0f} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
