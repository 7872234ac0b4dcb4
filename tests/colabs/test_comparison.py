"""What counts as the same output, and what does not."""

import nbformat
import pytest
from nbformat import v4

from tests.colabs.notebooks import VARIES, alike, differences, digest, noise, tidy

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
        "dense: 96.7 ± 0.4 % right, 17,024 weights\n--------\n",  # more than a point
        "dense: 98.9 ± 0.4 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.4 % right, 17,424 weights\n--------\n",
        "dense: 97.8 ± 0.8 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.4 % right, 12,024 weights\n--------\n",
        "sparse: 97.8 ± 0.4 % right, 17,024 weights\n--------\n",
        "dense: 97.8 ± 0.4 % right\n--------\n",
        SAID + "and more\n",
    ],
)
def test_not_alike(other):
    assert not alike(SAID, other)


@pytest.mark.parametrize(
    ("number", "spread", "most"),
    [
        ("97.8", None, 1.0),
        ("98.1", "0.4", 1.0),
        ("72.2", None, 2.78),  # a tenth of 27.8
        ("21.9", None, 2.19),
        ("42.6", "12.0", 6.0),
        ("9.7", None, 0.97),
        ("0.4", None, 0.3),
        ("1,702", None, 34.04),
        ("26", None, 3),
        ("0.8798", None, 0.017596),
        ("-11.1", None, 1.11),
    ],
)
def test_by_how_much_a_number_may_differ(number, spread, most):
    assert noise(number, spread) == pytest.approx(most)
    said = f"it is {number}" + (f" ± {spread}" if spread else "")
    for times, same in ((0.99, True), (1.3, False)):
        other = said.replace(number, f"{float(number.replace(',', '')) + times * most:.6f}", 1)
        assert alike(said, other) is same


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
