"""Features of layers, named by their params, of functions, models and compacted networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.distillation import features
from tests.distillation.test_logits import draw

HEAD, CONV = "params/Dense_0/kernel", "params/Conv_1/kernel"
X = draw(0, 2, 4, 4, 1)


class Net(nn.Module):
    """Two convolutions and a dense layer, with relu between."""

    @nn.compact
    def __call__(self, x):
        conv = partial(nn.Conv, 4, (3, 3), conv_general_dilated=jp.conv_general_dilated)
        for _ in range(2):
            x = nn.relu(conv()(x))
        return nn.Dense(3)(x.mean((1, 2)))


NET = Net()


@pytest.fixture(scope="module")
def variables():
    return jax.jit(NET.init)(jax.random.key(0), X)


def test_what_layers_of_a_model_read(variables):
    """As Flax's own interception sees it; the outputs are those of the function."""
    read = {}

    def watch(call, args, kwargs, context):
        read["/".join(("params", *context.module.path, "kernel"))] = args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        outputs = NET.apply(variables, X)
    result, seen = jax.jit(features(NET.apply, [HEAD, CONV]))(variables, X)
    np.testing.assert_allclose(result, outputs, rtol=1e-5, atol=1e-6)
    for name in (HEAD, CONV):
        np.testing.assert_allclose(seen[name], read[name], rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_function_and_reach_the_layers_before(variables):
    def loss(v):
        result, seen = features(NET.apply, [CONV])(v, X)
        return jnp.sum(result**2), jnp.sum(seen[CONV] ** 2)

    plain = jax.jit(jax.grad(lambda v: jnp.sum(NET.apply(v, X) ** 2)))(variables)
    watched, before = jax.jit(jax.jacrev(loss))(variables)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(near, plain, watched)
    assert jnp.abs(before["params"]["Conv_0"]["kernel"]).max() > 0
    assert jnp.abs(before["params"]["Conv_1"]["kernel"]).max() == 0


def test_relu_at_zero_keeps_its_own_derivative():
    """The derivative of max is 1/2 there, that of `jax.nn.relu` is 0."""
    fn = lambda params, x: jax.nn.relu(x @ params["a"]) @ params["b"]
    params = {"a": jnp.zeros((2, 3)), "b": jnp.ones((3, 1))}
    loss = lambda params: jnp.sum(features(fn, ["b"])(params, jnp.ones((4, 2)))[0])
    np.testing.assert_array_equal(jax.grad(loss)(params)["a"], 0)


def test_a_compacted_network_has_the_names_of_the_dense_one(variables):
    structure = jp.analyze(NET.apply, variables, X[:1])
    scores = jp.structured.per_group(structure, jp.structured.square)(variables)
    small = jp.compact(structure, variables, jp.pick(structure, scores, 0.5, jp.uniform))
    own = jax.eval_shape(features(small.fn, [HEAD, CONV]), small.params, X)[1]
    assert {name: x.shape for name, x in own.items()} == {HEAD: (2, 2), CONV: (2, 4, 4, 2)}


def test_leaves_are_followed_through_calls_and_moves():
    fn = jax.checkpoint(lambda params, x: jnp.tanh(x) @ params["w"].T.reshape(2, 3))
    params, x = {"w": draw(1, 3, 2)}, draw(2, 5, 2)
    result, seen = jax.jit(features(fn, ["w"]))(params, x)
    np.testing.assert_allclose(result, fn(params, x), rtol=1e-6)
    np.testing.assert_allclose(seen["w"], jnp.tanh(x), rtol=1e-6)
    stack = {"w": jnp.stack([params["w"], 2 * params["w"]])}
    together = jax.vmap(lambda params: features(fn, ["w"])(params, x)[0])(stack)
    np.testing.assert_allclose(together[1], 2 * result, rtol=1e-5)


def test_layers_that_are_not_there_or_not_read_once():
    twice = lambda params, x: x @ params["w"] @ params["w"]
    params, x = {"w": jnp.ones((2, 2)), "b": jnp.ones((1, 2))}, jnp.ones((3, 2))
    with pytest.raises(ValueError, match="no leaf 'Dense_9/kernel'; they have 'b', 'w'"):
        features(twice, ["Dense_9/kernel"])(params, x)
    with pytest.raises(ValueError, match="2 products of the program read 'w'"):
        features(twice, ["w"])(params, x)
    with pytest.raises(ValueError, match="0 products of the program read 'b'"):
        features(lambda params, x: x + params["b"], ["b"])(params, x)
    with pytest.raises(TypeError, match="layers is a list of names; got 'w'"):
        features(twice, "w")
