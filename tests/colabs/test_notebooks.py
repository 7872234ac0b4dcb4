"""Every notebook runs, says what it said when it was stored, and is fit to print."""

import re

import pytest

from tests.colabs.notebooks import (
    NUMBER,
    PATHS,
    REPOSITORY,
    ROOT,
    VARIES,
    code_cells,
    differences,
    digest,
    execute,
    read,
    shown,
    value_of,
)

HOW = "python -m tests.colabs {}   (it executes the notebook, and stores it with its outputs)"
MOST = 300_000  # bytes of a file
DEVICES = {"04_connectivity": 8}  # where seeds go to devices; stored from one
notebooks = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def test_they_are_numbered():
    assert [path.stem[:2] for path in PATHS] == [f"{i:02}" for i in range(1, len(PATHS) + 1)]


@notebooks
def test_the_code_is_what_was_executed(path):
    notebook = read(path)
    stored = notebook.metadata.get("jaxprune", {}).get("executed")
    assert stored == digest(notebook), HOW.format(path.stem[:2])
    assert [cell.execution_count for cell in code_cells(notebook)] == [
        i + 1 for i in range(len(code_cells(notebook)))
    ]


@notebooks
def test_it_is_fit_to_print(path):
    notebook, text = read(path), path.read_text()
    assert path.stat().st_size < MOST
    assert f"/{REPOSITORY}/blob/main/colabs/{path.name})" in notebook.cells[0].source  # the badge
    assert set(re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", text)) == {REPOSITORY}
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    assert not {cell.source.strip() for cell in notebook.cells} & {""}


@notebooks
def test_the_notebooks_it_names_and_the_recipes_exist(path):
    text = "\n".join(cell.source for cell in read(path).cells)
    for name in re.findall(r"`(0\d_\w+)`", text):
        assert (ROOT / "colabs" / f"{name}.ipynb").exists(), name
    recipes = re.findall(r"python -m recipes\.(\w+)", text)
    assert recipes
    for name in recipes:
        assert (ROOT / "recipes" / f"{name}.py").exists(), name


@notebooks
def test_readme_answers_with_numbers_that_it_printed(path):
    """Rounded to as many digits; or, what was asked for, as its text has it."""
    (row,) = re.findall(rf"^\| \[{path.stem}\].*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    notebook = read(path)
    text = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    printed = " ".join(shown(cell) for cell in code_cells(notebook))
    for number in NUMBER.findall(row.split("|")[-2]):
        half = 0.5 * 10.0 ** -len(number.partition(".")[2])
        near = [value_of(n) for n in NUMBER.findall(printed)]
        assert number in NUMBER.findall(text) or any(
            abs(n - value_of(number)) <= half * (1 + 1e-9) for n in near
        ), number


def test_all_begin_alike():
    """They install, choose devices and set the style in the same words."""
    beginnings = {tuple(cell.source for cell in code_cells(read(path))[:3]) for path in PATHS}
    assert len(beginnings) == 1
    install, devices, _ = code_cells(read(PATHS[0]))[:3]
    assert "%pip install" in install.source and VARIES in devices.metadata.tags


@pytest.mark.notebook
@notebooks
def test_it_runs_and_says_what_it_said(path):
    stored = read(path)
    fresh = execute(stored, devices=DEVICES.get(path.stem, 1))
    found = differences(stored, fresh)
    assert not found, "\n".join([*found, HOW.format(path.stem[:2])])
