"""Makes code blocks of doctests: Markdown reads `>>>` as a quotation."""

from __future__ import annotations

import re
from typing import Any

import griffe

DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^(?!>>> )[^\n]+\n?)*)+", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts every doctest and its output into a fenced block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes each docstring when it is loaded."""
        if obj.docstring:
            fenced = DOCTEST.sub(lambda m: f"```pycon\n{m[0].rstrip()}\n```\n", obj.docstring.value)
            obj.docstring.value = fenced
