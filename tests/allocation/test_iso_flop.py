"""Sizes of sparse layers at equal FLOPs: the worked numbers, and that FLOPs are equal."""

import pytest

import jaxprune as jp

INPUTS, OUTPUTS = 9 * 64, 64  # a 3x3 convolution of 64 channels
DENSE = INPUTS * OUTPUTS


@pytest.mark.parametrize(
    ("sparsity", "width", "branches", "between", "rank"),
    [(0.5, 90, 2, 116, 28), (0.75, 128, 4, 231, 43), (0.9, 202, 10, 576, 51), (0.0, 64, 1, 58, 0)],
)
def test_sizes_by_hand_and_equal_flops(sparsity, width, branches, between, rank):
    allocation = jp.allocation
    assert allocation.wide(64, sparsity) == width
    assert allocation.parallel(sparsity) == branches
    assert allocation.factorized(INPUTS, OUTPUTS, sparsity) == between
    assert allocation.doped(INPUTS, OUTPUTS, sparsity) == rank
    kept = 1 - sparsity
    weights = {
        "wide": kept * 9 * width**2,
        "parallel": kept * branches * DENSE,
        "factorized": kept * between * (INPUTS + OUTPUTS),
        "doped": kept * DENSE + rank * (INPUTS + OUTPUTS),
    }
    assert all(n == pytest.approx(DENSE, rel=0.023) for n in weights.values()), weights


def test_bad_input():
    with pytest.raises(ValueError, match=r"allocation\.wide: sparsity is the fraction"):
        jp.allocation.wide(64, 1.0)
    with pytest.raises(ValueError, match=r"allocation\.parallel: sparsity is the fraction"):
        jp.allocation.parallel(-0.5)
    with pytest.raises(ValueError, match=r"allocation\.factorized: outputs is a whole number"):
        jp.allocation.factorized(4, 0, 0.5)
    with pytest.raises(ValueError, match=r"allocation\.doped: inputs is a whole number"):
        jp.allocation.doped(1.5, 2, 0.5)
