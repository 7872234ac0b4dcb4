"""The Python of the README and of the pages runs as printed, and what they name exists."""

import inspect
import pathlib
import re

import pytest

import jaxprune as jp

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ROOT / ".docs" / "pages"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def programs():
    """Name -> a block of Python; one that is printed twice is run once.

    Those of methods.md are run by tests/recipes/test_gallery.py.
    """
    pages = [path for path in sorted(PAGES.rglob("*.md")) if path.name != "methods.md"]
    found = {}
    for path in (ROOT / "README.md", *pages):
        for i, block in enumerate(BLOCK.findall(path.read_text())):
            found.setdefault(block, f"{path.stem}-{i}")
    return {name: block for block, name in found.items()}


PROGRAMS = programs()


@pytest.mark.parametrize("name", PROGRAMS)
def test_python_blocks_run(name):
    exec(compile(PROGRAMS[name], name, "exec"), {"__name__": "page"})


def test_the_words_are_public_names():
    table = (PAGES / "words.md").read_text().split("| word | functions |")[1].split("\n\n")[0]
    names = re.findall(r"`(\w+)", table)
    assert len(names) > 20
    assert [name for name in names if not callable(getattr(jp, name, None))] == []


def test_every_file_of_the_map_exists():
    tree = README.split("## The tree")[1].split("```")[1]
    files = re.findall(r"^  (\w+\.py|\w+/)", tree, re.MULTILINE)
    assert files and all((ROOT / "jaxprune" / file).exists() for file in files)


def test_the_first_two_shell_blocks_are_one_line_each():
    first, second = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)[:2]
    assert "recipes.gmp" in first and "pytest" in second
    assert first.count("\n") == second.count("\n") == 1


@pytest.mark.parametrize("page", ["README.md", ".docs/pages"])
def test_pictures_and_links_lead_somewhere(page):
    """In the repository; where they lead in the site `mkdocs build --strict` sees to."""
    path, dead = ROOT / page, []
    for file in [path] if path.is_file() else path.rglob("*.md"):
        text = re.sub(r"```.*?```", "", file.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            if ":" not in target and not (file.parent / target).exists():
                dead.append((file.name, target))
    assert dead == []


def test_what_docstrings_say_of_arguments_is_of_theirs():
    """`a, b: ...` documents both; a name that the function lost must not stay."""
    wrong = []
    for name in dir(jp):
        function = getattr(jp, name)
        if not inspect.isfunction(function) or name.startswith("_"):
            continue
        own = set(inspect.signature(function).parameters)
        arguments = (inspect.getdoc(function) or "").partition("Args:\n")[2].partition("\n\n")[0]
        told = re.findall(r"^  (\w[\w, ]*):", arguments, re.MULTILINE)
        wrong += [(name, a) for names in told for a in names.split(", ") if a not in own]
    assert wrong == []
