"""What counts as the same output, and what does not."""

import nbformat
import pytest
from nbformat import v4

from tests.colabs.notebooks import VARIES, alike, differences, digest, tidy

SAID = "dense: 97.8 ± 0.4 % right, 17,024 weights\n--------\n"


@pytest.mark.parametrize(
    "other",
    [
        "dense: 97.3 ± 0.6 % right, 17,021 weights\n--------\n",  # another machine
        "dense: 98.1 ± 0.4 % right, 17,024 weights\n---------\n",  # a rule as long as its table
        "dense:  97.8 ± 0.4 % right,  17,024 weights\n--------\n",
    ],
)
def test_alike(other):
    assert alike(SAID, SAID) and alike(SAID, other)


@pytest.mark.parametrize(
    "other",
    [
        "dense: 87.8 ± 0.4 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.8 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.4 % right, 12,024 weights\n--------\n",
        "sparse: 97.8 ± 0.4 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.4 % right\n--------\n",
        SAID + "and more\n",
    ],
)
def test_not_alike(other):
    assert not alike(SAID, other)


def a_notebook(text, tags=()):
    output = v4.new_output("stream", name="stdout", text=text)
    cell = v4.new_code_cell("print(x)", outputs=[output], metadata={"tags": [*tags], "more": 1})
    return v4.new_notebook(cells=[cell], metadata={"widgets": {}})


def test_differences_name_the_cell_unless_it_may_vary():
    (found,) = differences(a_notebook("5 seeds"), a_notebook("5 runs"))
    assert "print(x)" in found and "-5 seeds" in found and "+5 runs" in found
    assert differences(a_notebook("5 seeds"), a_notebook("4.8 seeds")) == []
    varying = [a_notebook(text, [VARIES]) for text in ("cpu", "TPU v5 lite")]
    assert differences(*varying) == []


def test_tidy_keeps_the_tags_and_signs_the_code():
    notebook = tidy(a_notebook("5 seeds", [VARIES]))
    nbformat.validate(notebook)
    assert notebook.cells[0].metadata == {"tags": [VARIES]} and "widgets" not in notebook.metadata
    assert notebook.metadata["jaxprune"] == {"executed": digest(notebook)}
    notebook.cells[0].source += "  # changed"
    assert notebook.metadata["jaxprune"] != {"executed": digest(notebook)}
