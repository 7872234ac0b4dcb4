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
        assert said.count(f"python -m recipes.{name} ") == 1
        assert hasattr(importlib.import_module(f"recipes.{name}"), "main")
    assert all(10 < len(what) < 120 for what in listing.studies().values())
