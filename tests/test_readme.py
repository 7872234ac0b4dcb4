"""The Python of the README runs as printed, and its commands name what exists."""

import pathlib
import re

import pytest

import jaxprune as jp

TEXT = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_the_words_are_public_names():
    table = TEXT.split("| word | functions |")[1].split("\n\n")[0]
    names = re.findall(r"`(\w+)", table)
    assert len(names) > 20
    assert [name for name in names if not callable(getattr(jp, name, None))] == []


def test_every_file_of_the_map_exists():
    root = pathlib.Path(__file__).parents[1]
    tree = TEXT.split("## The tree")[1].split("```")[1]
    files = re.findall(r"^  (\w+\.py|\w+/)", tree, re.MULTILINE)
    assert files and all((root / "jaxprune" / file).exists() for file in files)


def test_the_first_two_shell_blocks_are_one_line_each():
    first, second = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)[:2]
    assert "recipes.gmp" in first and "pytest" in second
    assert first.count("\n") == second.count("\n") == 1
