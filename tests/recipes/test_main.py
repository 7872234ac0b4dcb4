"""The list of recipes is all of them, in a line each."""

import importlib
from pathlib import Path

import recipes
from recipes import __main__ as listing


def test_every_recipe_has_a_line(capsys):
    listing.main()
    said = capsys.readouterr().out
    files = [p.stem for p in Path(recipes.__file__).parent.glob("[!_]*.py")]
    assert len(files) >= 7
    for name in files:
        assert sum(line.startswith(f"  {name} ") for line in said.splitlines()) == 1
        assert hasattr(importlib.import_module(f"recipes.{name}"), "main")
    assert all(len(what) > 10 for what in listing.studies().values())
    assert len(said.splitlines()) == len(files) + 4  # none takes two
