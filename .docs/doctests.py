"""Doctests of the docstrings as blocks of code: Markdown would take `>>>` for quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> )[^\n]+\n?)*)+", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences every doctest, with what it prints."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Of each docstring as it is loaded."""
        if obj.docstring:
            fenced = DOCTEST.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = fenced
