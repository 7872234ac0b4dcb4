"""Masks at one bit a weight come back as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp


def masks_like(params, key=0):
    masks = jp.select(jp.random(jax.random.key(key))(jp.kernels(params)), jp.uniform, 0.5)
    return masks


@pytest.mark.parametrize("transformed", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_there_and_back(params, transformed):
    masks = masks_like(params)
    packed = transformed(jp.export.pack)(masks)
    assert packed["Dense_0"]["bias"] is None
    assert packed["Dense_0"]["kernel"].shape == (4,)
    assert packed["Dense_0"]["kernel"].dtype == jnp.uint8
    shapes = jax.eval_shape(lambda: params)
    jax.tree.map(np.testing.assert_array_equal, jp.export.unpack(packed, shapes), masks)


def test_a_size_that_is_no_multiple_of_eight():
    mask = jnp.arange(35).reshape(5, 7) % 3 == 0
    packed = jp.export.pack({"w": mask})
    assert packed["w"].shape == (5,)
    np.testing.assert_array_equal(jp.export.unpack(packed, {"w": mask})["w"], mask)


def test_a_vmapped_pack_is_a_loop_of_packs():
    stack = {"w": jnp.arange(70).reshape(2, 5, 7) % 3 == 0}
    packed = jax.vmap(jp.export.pack)(stack)["w"]
    for i in range(2):
        np.testing.assert_array_equal(packed[i], jp.export.pack({"w": stack["w"][i]})["w"])


def test_mistakes(params):
    packed = jp.export.pack(masks_like(params))
    with pytest.raises(ValueError, match=r"not in the params: 'Dense_1/kernel'"):
        jp.export.unpack(packed, {"Dense_0": params["Dense_0"]})
    wider = jax.tree.map(lambda w: jnp.zeros((*w.shape, 2)), params)
    with pytest.raises(ValueError, match=r"packed in uint8 of shape \(8,\); 'Dense_0/kernel'"):
        jp.export.unpack(packed, wider)
    with pytest.raises(TypeError, match=r"that of 'w' is float32"):
        jp.export.pack({"w": jnp.ones(3)})
