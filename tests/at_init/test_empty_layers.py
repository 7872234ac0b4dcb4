"""Layers that keep nothing, by path, of one network and of a stack."""

import jax
import jax.numpy as jnp
import pytest

import jaxprune as jp

MASKS = {
    "Dense_0": {"kernel": jnp.array([[True, False]]), "bias": None},
    "Dense_1": {"kernel": jnp.zeros((2, 3), bool), "bias": None},
    "no_weights": jnp.zeros((0, 3), bool),
}


def test_by_path():
    found = jp.at_init.empty_layers(MASKS)
    assert {path: bool(is_empty) for path, is_empty in found.items()} == {
        "Dense_0/kernel": False,
        "Dense_1/kernel": True,
    }


def test_of_a_stack_of_seeds():
    stack = {"a": jnp.array([[True, False], [False, False], [True, True]]), "b": None}
    assert jax.jit(jax.vmap(jp.at_init.empty_layers))(stack)["a"].tolist() == [False, True, False]


def test_of_no_masks():
    with pytest.raises(ValueError, match="there are no masks"):
        jp.at_init.empty_layers({"a": None})
