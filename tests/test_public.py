"""The public names: few at the root, each in one place, and what is written of them resolves."""

import inspect
import json
import pathlib
import re
import sys

import pytest

import jaxprune as jp
from tests.public import PUBLIC, ROOMS, ROOT, exported

TREE = pathlib.Path(__file__).parents[1]
USED = re.compile(r"(?<![\w.])(?:jp|jaxprune)((?:\.[A-Za-z_]\w*)+)")


def test_the_root_holds_the_sentence():
    assert len(ROOT) <= 60
    assert len(list((TREE / "jaxprune").glob("*.py"))) <= 12


def test_each_name_has_one_place():
    values = list(PUBLIC.values())
    assert len({id(value) for value in values}) == len(values)


def test_what_folders_are_named_like_does_not_hide_functions():
    for name in ("report", "soup", "set"):
        assert inspect.isfunction(getattr(jp, name))
    for room, module in ROOMS.items():
        assert inspect.ismodule(module) and module.__name__ == f"jaxprune.{room}"
        assert all(callable(value) for value in exported(module).values())


@pytest.mark.parametrize("room", ROOMS)
def test_the_docstring_of_a_room_is_its_table_of_contents(room):
    told = set(re.findall(r"`(\w+)`", ROOMS[room].__doc__))
    assert told >= set(exported(ROOMS[room]))


def texts():
    """What is written of public names: code, pages, and the sources of notebooks."""
    for folder in ("jaxprune", "recipes", "tests", ".docs", ".ci"):
        for path in (TREE / folder).rglob("*"):
            if path.suffix in (".py", ".md") and not {"venv", "venv312"} & {*path.parts}:
                yield path, path.read_text()
    for name in ("README.md", "CONTRIBUTING.md"):
        yield TREE / name, (TREE / name).read_text()
    for path in (TREE / "colabs").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        yield path, "\n".join("".join(cell["source"]) for cell in cells)


def resolves(names):
    """Whether these attributes are there, as far as they are of modules and of what these have."""
    value = jp
    for name in names:
        if not inspect.ismodule(value):
            return True  # of a value nothing is known here
        if not hasattr(value, name):
            return ".".join((value.__name__, name)) in sys.modules
        value = getattr(value, name)
    return True


def test_every_name_that_is_written_is_there():
    gone = {
        (str(path.relative_to(TREE)), f"jp{used}")
        for path, text in texts()
        for used in USED.findall(text)
        if not resolves(used[1:].split("."))
    }
    example = "jp.movement"  # of CONTRIBUTING.md; tests/test_pages.py runs it
    assert {written for written in gone if written[1] != example} == set()
