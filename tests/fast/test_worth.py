"""From which sparsity on a pattern pays: the table, by clocks that are known."""

import jax
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.fast import worth


def test_masks_are_balanced_and_keep_the_fraction():
    mask = worth.random_mask((64, 32), (8, 16), 0.75)
    blocks = mask.reshape(8, 8, 2, 16)
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    np.testing.assert_array_equal(blocks.any((1, 3)).sum(0), 2)
    assert worth.random_mask((64, 32), (64, 32), 0.9).all()  # one block stays
    assert worth.random_mask((10, 7), (1, 7), 0.8).any(1).sum() == 2  # whole inputs


def test_it_pays_from_the_sparsity_where_all_higher_ones_pay():
    sparsities = (0.5, 0.75, 0.9)
    assert worth._pays_from((1.0, 1.2, 3.0), sparsities) == 0.75
    assert worth._pays_from((1.2, 1.0, 3.0), sparsities) == 0.9
    assert worth._pays_from((1.2, 1.3, 1.05), sparsities) is None


@pytest.mark.full
def test_the_table_takes_the_fastest_form_of_each_pattern(monkeypatch):
    """Dense takes a second; blocks take as long as their share of weights, others longer."""

    def times(kernel, forms, products, rounds, clock):
        size = lambda own: sum(x.size for x in jax.tree.leaves(own.form) if x.dtype == np.float32)
        factor = lambda own: 1.0 if "by rows" in own.name else 2.0
        return {"dense": 1.0} | {o.name: factor(o) * size(o) / kernel.size for o in forms}

    monkeypatch.setattr(worth, "times", times)
    seen = []
    table = jp.fast.patterns_worth_it(
        *([(128, 64)], [4], (0.0, 0.75)),
        patterns=["blocks of 16 x 16", "blocks of 64 x 64", "single weights"],
        done=lambda: seen.append(1),
    )
    by = {row.pattern: row for row in table.rows}
    assert len(seen) == 6 and set(by) == {
        *("blocks of 16 x 16", "blocks of 64 x 64", "single weights")
    }
    assert by["blocks of 16 x 16"].ratios == (1.0, 4.0)
    assert by["blocks of 16 x 16"].forms == ("dense", "blocks of 16 x 16, by rows")
    assert by["blocks of 16 x 16"].pays_from == 0.75
    assert by["single weights"].ratios == (1.0, 2.0)
    assert "128x64  4      blocks of 16 x 16  1    4" in str(table)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shapes": [(3, 3, 8)]}, r"shapes \(in, out\) of matrices; got \(3, 3, 8\)"),
        ({"shapes": [(8, 8)], "sparsities": (0.9, 0.5)}, "ascend; got"),
        ({"shapes": [(8, 8)], "sparsities": (1.0,)}, r"in \[0, 1\)"),
        ({"shapes": [(8, 8)], "patterns": ["stripes"]}, "unknown pattern 'stripes'; there are"),
    ],
)
def test_bad_input_says_the_way_out(given, said):
    with pytest.raises(ValueError, match=said):
        jp.fast.patterns_worth_it(**given)
