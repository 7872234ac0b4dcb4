"""`statistics`: the inputs of each leaf are those that hooks written by hand see."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.trees import named_leaves
from recipes.common.models import decoder

KEY = jax.random.key(0)


class Mlp(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(jnp.tanh(nn.Dense(5)(x)))


class Convolutions(nn.Module):
    """Two convolutions, with strides and padding, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(3, (2, 1), padding="VALID")(x))
        return nn.Dense(2)(x.reshape(len(x), -1))


class Layer(nn.Module):
    """A layer of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return x + jnp.tanh(nn.Dense(4)(x)), None


class Scanned(nn.Module):
    """Three layers in one stack."""

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


def hooked(module, variables, x):
    """{path of the kernel: what its layer reads, as rows} of each call of a layer."""
    seen = {}

    def watch(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(
            context.module, (nn.Dense, nn.DenseGeneral, nn.Conv)
        ):
            path = "/".join((*context.module.path, "kernel"))
            seen.setdefault(path, []).append((context.module, args[0]))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        module.apply(variables, x)
    return {path: [rows(*each) for each in calls] for path, calls in seen.items()}


def rows(layer, x):
    """The inputs of a layer, (rows, inputs)."""
    if isinstance(layer, nn.Conv):
        window, strides = layer.kernel_size, layer.strides or 1
        strides = (strides,) * len(window) if isinstance(strides, int) else strides
        patches = lax.conv_general_dilated_patches(
            x, window, strides, layer.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )  # channels, and within them the window
        apart = patches.reshape(-1, x.shape[-1], np.prod(window))
        return apart.swapaxes(1, 2).reshape(len(apart), -1)
    contracted = np.atleast_1d(getattr(layer, "axis", -1))
    return x.reshape(-1, np.prod([x.shape[i] for i in contracted]))


def check(of, xs):
    """The statistics of rows, all calls together."""
    x = np.concatenate([np.asarray(each, np.float64) for each in xs])
    assert of.rows == len(x)
    np.testing.assert_allclose(of.mean, x.mean(0), rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(of.square_norms, (x**2).sum(0), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(of.norms, np.linalg.norm(x, axis=0), rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(of.second_moment, x.T @ x, rtol=2e-5, atol=1e-4)


def by_name(made):
    """The statistics by the path of their leaf; None where there are none."""
    is_one = lambda x: x is None or isinstance(x, jp.calibration.Statistics)
    paths = jax.tree_util.tree_leaves_with_path(made, is_leaf=is_one)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): of for p, of in paths}


NETWORKS = {
    "dense": (Mlp(), (6, 8)),
    "convolutions": (Convolutions(), (2, 7, 6, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_those_of_hooks(name):
    module, shape = NETWORKS[name]
    batches = [jax.random.normal(jax.random.key(i), shape) for i in range(2)]
    variables = module.init(KEY, batches[0])
    made = jp.calibration.statistics(module.apply, variables, batches, second_moment=True)
    each = [hooked(module, variables, x) for x in batches]
    for path in each[0]:
        check(by_name(made)[f"params/{path}"], [x for of in each for x in of[path]])
    assert made["params"]["Dense_0"]["bias"] is None


@pytest.mark.full
def test_attention_with_groups_shares_the_inputs_of_queries_keys_and_values():
    size = decoder.Size(layers=1, width=8, heads=2, queries=2, dims=4, hidden=12)
    module = decoder.Decoder(11, size)
    tokens = jax.random.randint(KEY, (2, 5), 0, 11)
    variables = module.init(KEY, tokens)
    made = jp.calibration.statistics(module.apply, variables, [tokens], second_moment=True)
    named, seen = by_name(made), hooked(module, variables, tokens)
    assert len(seen) >= 5
    for path, calls in seen.items():
        check(named[f"params/{path}"], calls)
    shared = [of for path, of in named.items() if path.split("/")[-2] in ("query", "key", "value")]
    assert len(shared) == 3
    assert shared[0].second_moment is shared[1].second_moment is shared[2].second_moment
    # the table of tokens is looked up by integers; it is also read by a product at the end
    assert named["params/embed/embedding"] is None


def test_layers_of_a_scan_are_stacked():
    module, x = Scanned(), jax.random.normal(KEY, (6, 4))
    variables = module.init(KEY, x)
    made = jp.calibration.statistics(module.apply, variables, [x], second_moment=True)
    (of,) = [of for of in by_name(made).values() if of is not None]
    (kernel,) = [w for name, w in named_leaves(variables) if name.endswith("kernel")]
    (bias,) = [w for name, w in named_leaves(variables) if name.endswith("bias")]
    assert of.mean.shape == (3, 4) and of.second_moment.shape == (3, 4, 4)
    for i in range(3):
        check(of._replace(**{f: getattr(of, f)[i] for f in of._fields[1:]}), [x])
        x = x + jnp.tanh(x @ kernel[i] + bias[i][None])


def test_several_reads_of_a_leaf_are_summed_and_no_read_is_none():
    params = {"a": jnp.eye(3), "lost": jnp.eye(3)}
    x = jax.random.normal(KEY, (5, 3))
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["a"]
    made = jp.calibration.statistics(fn, params, [x], True, prunable=lambda p: p)
    check(made["a"], [x, jnp.tanh(x)])
    assert made["lost"] is None
    assert (
        jp.calibration.statistics(fn, params, [x], prunable=lambda p: p)["a"].second_moment is None
    )


def test_batches_may_differ_in_shape():
    params = {"kernel": jnp.ones((3, 2))}
    xs = [jax.random.normal(jax.random.key(n), (n, 3)) for n in (2, 5)]
    made = jp.calibration.statistics(lambda p, x: x @ p["kernel"], params, xs, True)
    check(made["kernel"], xs)


def test_an_outer_jit_gives_the_same():
    module, x = Mlp(), jax.random.normal(KEY, (4, 6))
    params = module.init(KEY, x)["params"]
    gather = lambda params, x: jp.calibration.statistics(
        lambda params, x: module.apply({"params": params}, x), params, [x, x[:2]], True
    )
    jitted, plain = jax.jit(gather)(params, x), gather(params, x)
    assert plain["Dense_0"]["kernel"].rows == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jitted, plain)


def test_experts_side_by_side():
    params = {"kernel": jnp.ones((2, 3, 4))}
    x = jax.random.normal(KEY, (2, 5, 3))
    fn = lambda p, x: jnp.einsum("eni,eio->eno", x, p["kernel"])
    of = jp.calibration.statistics(fn, params, [x], prunable=lambda p: p)["kernel"]
    assert of.rows == 5
    np.testing.assert_allclose(of.mean, x.mean(1), rtol=1e-5, atol=1e-6)


def test_wanda_of_the_norms_is_wanda():
    params, x = {"kernel": jax.random.normal(KEY, (6, 4))}, jax.random.normal(KEY, (9, 6))
    fn = lambda p, x: x @ p["kernel"]
    norms = jp.calibration.statistics(fn, params, [x])["kernel"].norms
    scores = jnp.abs(params["kernel"]) * norms[:, None]
    masks = jp.calibration.prune_in_order(fn, params, [x], jp.calibration.wanda(0.5))[1]
    np.testing.assert_array_equal(masks["kernel"], scores >= jnp.sort(scores, 0)[3:4])


def test_what_cannot_be_is_told():
    params, fn = {"kernel": jnp.ones((2, 2))}, lambda p, x: x @ p["kernel"]
    of = lambda *batches, fn=fn: jp.calibration.statistics(fn, params, batches)
    with pytest.raises(ValueError, match="batches is empty; give it at least one batch"):
        of()
    with pytest.raises(ValueError, match="inputs of 'kernel' have nan or inf in batch 1"):
        of(jnp.ones((1, 2)), jnp.full((1, 2), jnp.nan))
    with pytest.raises(TypeError) as error:
        of(jnp.ones((1, 3)))
    assert "the function does not take these params and this batch" in str(error.value.__notes__)
    parts = lambda p, x: x @ p["kernel"][:, :1] + x[:, :1] @ p["kernel"][:1]
    with pytest.raises(ValueError, match=r"parts of 'kernel' are multiplied with inputs of shapes"):
        of(jnp.ones((1, 2)), fn=parts)
