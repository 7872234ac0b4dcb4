"""Sizes after entropy coding, by hand, and against a Huffman code."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

size = jp.reparam.coded_size


def huffman(symbols):
    """The bits of all symbols in a Huffman code: the sum of its inner nodes."""
    heap = [int(n) for n in np.unique(symbols, return_counts=True)[1]]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        both = heapq.heappop(heap) + heapq.heappop(heap)
        total += both
        heapq.heappush(heap, both)
    return total


def test_frequencies_by_hand():
    """1/2, 1/4, 1/8, 1/8 of eight symbols: 4 * 1 + 2 * 2 + 2 * 3 bits."""
    assert size(jnp.array([0, 0, 0, 0, 7, 7, 2, 3])) == (8, 14)
    assert size({"a": jnp.zeros(9, jnp.uint8), "b": None}) == (9, 0)
    assert size(jnp.array([True, False])) == (2, 2)


def test_a_table_of_values_counts_unless_plain_floats_are_less():
    two = jnp.array([0.5, -0.5] * 32)
    assert size(two) == (64 + 2, 64 + 2 * 32)
    assert size(two.astype(jnp.bfloat16)) == (64 + 2, 64 + 2 * 16)
    assert size(jnp.arange(64.0)) == (64, 64 * 32)


def test_a_mask_takes_the_entropy_of_its_density():
    """Half of the entries kept: a bit each; a 16th: n (1/16 log2 16 + 15/16 log2 16/15)."""
    codes = jnp.zeros((4, 16), jnp.uint8)
    half, few = jnp.arange(64).reshape(4, 16) % 2 == 0, jnp.arange(64).reshape(4, 16) < 4
    assert size({"kernel": codes}, {"kernel": half}) == (32, 64)
    assert size({"kernel": codes}, {"kernel": few}) == (4, 22)  # 64 * 0.33729
    assert size({"kernel": codes}, {"kernel": jnp.ones_like(half)}) == (64, 0)
    assert size({"kernel": codes}, {"kernel": ~jnp.ones_like(half)}) == (0, 0)


def test_a_huffman_code_takes_less_than_a_bit_an_entry_more():
    params = {"kernel": jax.random.normal(jax.random.key(0), (50, 40))}
    codes = jp.reparam.codes(jp.reparam.codebook(4).init(params))
    symbols = np.asarray(codes["kernel"]).ravel()
    least = size(codes).bits
    assert least <= huffman(symbols) < least + symbols.size
    assert huffman(symbols) < 1.02 * least < 4 * symbols.size


def test_clear_errors():
    codes = {"kernel": jnp.zeros((2, 2), jnp.uint8)}
    with pytest.raises(TypeError, match=r"those of 'kernel' are not known here"):
        jax.jit(lambda codes: size(codes).bits)(codes)
    with pytest.raises(TypeError, match=r"those of 'kernel' are not known here"):
        size(jax.eval_shape(lambda: codes))
    with pytest.raises(TypeError, match=r"masks of bool.*'kernel' is float32"):
        size(codes, {"kernel": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="kernel"):
        size(codes, {"kernel": jnp.ones((2, 3), bool)})


def test_a_report_has_the_bits_of_each_layer():
    """The bits of the layers, of what is never pruned, and of all; a stack in its layers."""
    w = jax.random.normal(jax.random.key(0), (2, 16, 8))
    params = {"layers": {"kernel": w}, "bias": jnp.arange(8.0)}
    stacked = jp.matching(stacked={"layers/*": 0})
    masks = jp.select(jp.magnitude(stacked(params)), jp.uniform, 0.75)
    method = jp.reparam.codebook(3, prunable=stacked)
    used = method.apply(method.init(jp.apply_masks(params, masks)))
    result = jp.report(used, masks, prunable=stacked, coded=True)
    mask = used["layers"]["kernel"] != 0
    for i, layer in enumerate(result.layers):
        one = size(used["layers"]["kernel"][i], mask[i])
        assert layer.coded_bits == one.bits < 32 * 3 + 8 * 32 + 128
    assert result.never_pruned.coded_bits == 8 * 32
    assert result.total.coded_bits == result.prunable.coded_bits + 8 * 32
    assert "  bits\n" in str(result) and "coded by how often" in str(result)
    without = jp.report(used, masks, prunable=stacked)
    assert without.total.coded_bits is None and "bits" not in str(without)
