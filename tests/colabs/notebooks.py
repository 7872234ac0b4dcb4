"""The notebooks of colabs/: how they are executed, stored and compared."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
PATHS = sorted((ROOT / "colabs").glob("*.ipynb"))
REPOSITORY = "jaxprune/jaxprune"  # on GitHub, where Colab opens and installs from
COUNT = "xla_force_host_platform_device_count"
VARIES = "varies"  # the tag of a cell whose output is a machine's own: its devices, its speed
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?")
UNITS = 3  # in the last digit
SPREAD = re.compile(rf"({NUMBER.pattern})(?=(?:\s*±\s*({NUMBER.pattern}))?)")  # 97.8 ± 0.4
KEPT = ("kernelspec", "language_info", "jaxprune")  # of the metadata of a notebook


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(stored: NotebookNode, devices: int = 1) -> NotebookNode:
    """A copy that was run from top to bottom by a new kernel, on so many CPU devices.

    Raises:
      nbclient.exceptions.CellExecutionError: if a cell does; it shows the cell and the traceback.
    """
    notebook = nbformat.from_dict(stored)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    others = re.sub(rf"--{COUNT}=\d+", "", os.environ.get("XLA_FLAGS", ""))
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{others} --{COUNT}={devices}",
    }
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(ROOT / "colabs")}},
    )
    client.execute(env=env)
    return tidy(notebook)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """As it is stored: without what only one machine or one run has to say."""
    notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEPT}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["jaxprune"] = {"executed": digest(notebook)}
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
    return notebook


def digest(notebook: NotebookNode) -> str:
    """Of the code: with it an outdated output is told without running anything."""
    source = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(source.encode()).hexdigest()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def differences(stored: NotebookNode, fresh: NotebookNode) -> list[str]:
    """What cells say otherwise than they did, for a person to read; empty if nothing.

    Words must be the same, in the same layout, and figures as many. Numbers may differ as much as
    training does between machines, `noise`.
    """
    found = []
    for old, new in zip(code_cells(stored), code_cells(fresh), strict=True):
        if VARIES in old.metadata.get("tags", ()):
            continue
        before, after = shown(old), shown(new)
        if not alike(before, after):
            diff = difflib.unified_diff(
                before.splitlines(), after.splitlines(), "stored", "executed", lineterm="", n=0
            )
            found.append("\n".join([f"cell {old.id}: {old.source.splitlines()[0]}", *diff]))
    return found


def alike(before: str, after: str) -> bool:
    """Whether two texts differ only in numbers, and in these by little."""
    if words(before) != words(after):
        return False
    numbers = [(match[1], match[2]) for match in SPREAD.finditer(before)]
    fresh = [match[0] for match in NUMBER.finditer(after)]
    return all(
        abs(value_of(old) - value_of(new)) <= noise(old, spread) * (1 + 1e-9)
        for (old, spread), new in zip(numbers, fresh, strict=True)
    )


def words(text: str) -> list[str]:
    """What is between the numbers: neither a digit more nor a longer rule changes it."""
    return re.sub(r"-{3,}", "---", NUMBER.sub("#", text)).split()


def noise(number: str, spread: str | None = None) -> float:
    """By how much a number may differ; `spread` is the deviation printed after it, `± 0.4`.

    One of 10 to 100 with a decimal is a percentage: 1 point, or a tenth of what it lacks to 0 or to
    100 (97.8: 1.0; 72.2: 2.8), or half of its spread. Counts, and fractions of many digits, may be
    off by a fiftieth, all others by a tenth; any by 3 in the last digit.
    """
    value, digits = abs(value_of(number)), len(number.partition(".")[2])
    least = UNITS * 10.0**-digits
    if digits == 1 and 10 <= value <= 100:
        half = value_of(spread) / 2 if spread else 0.0
        return max(1.0, min(value, 100 - value) / 10, half)
    return max(least, value / (10 if digits == 1 else 50))


def value_of(number: str) -> float:
    return float(number.replace(",", ""))


def shown(cell: NotebookNode) -> str:
    """What a cell prints and returns, as text, with `[image]` for each figure."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(f"{output.text}\n")
        else:
            has_image = "image/png" in output.data
            parts.append("[image]\n" if has_image else f"{output.data['text/plain']}\n")
    return "".join(parts)
