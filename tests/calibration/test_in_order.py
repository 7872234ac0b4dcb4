"""`prune_in_order`: each product is pruned with what the pruned products before it give."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

WANDA = jp.calibration.wanda(0.5)
INPUTS = jp.calibration.Inputs


def weights(**shapes):
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


def batches(*shape, n=3):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(n)]


def every_leaf(params):
    return params


def by_hand(weight, xs, method=WANDA):
    """A matrix pruned with some inputs, of any leading axes."""
    return method(weight, INPUTS(tuple(x.reshape(-1, x.shape[-1]) for x in xs)))


@pytest.mark.full
@pytest.mark.parametrize("method", [WANDA, jp.calibration.sparsegpt((2, 4))], ids=["wanda", "gpt"])
def test_two_layers_as_by_hand(method):
    params, xs = weights(a=(8, 24), b=(24, 10)), batches(5, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    pruned, masks = jp.calibration.prune_in_order(fn, params, xs, method, every_leaf)
    a, mask_a = by_hand(params["a"], xs, method)
    b, mask_b = by_hand(params["b"], [jnp.tanh(x @ a) for x in xs], method)
    np.testing.assert_array_equal(masks["a"], mask_a)
    np.testing.assert_array_equal(masks["b"], mask_b)
    np.testing.assert_allclose(pruned["a"], a, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pruned["b"], b, rtol=1e-4, atol=1e-5)
    assert np.any(
        by_hand(params["b"], [jnp.tanh(x @ params["a"]) for x in xs], method)[1] != mask_b
    )


def test_a_method_for_each_leaf():
    params, xs = weights(a=(8, 24), b=(24, 10)), batches(5, 8)
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
    methods = {"a": jp.calibration.magnitude(0.25), "b": jp.calibration.wanda((2, 4))}
    _, masks = jp.calibration.prune_in_order(fn, params, xs, methods, every_leaf)
    a, mask = by_hand(params["a"], xs, methods["a"])
    np.testing.assert_array_equal(masks["a"], mask)
    ys = [jnp.tanh(x @ a) for x in xs]
    np.testing.assert_array_equal(masks["b"], by_hand(params["b"], ys, methods["b"])[1])
    assert "'b' has no method" in raised(fn, params, xs, method={"a": WANDA})
    methods["c"] = WANDA
    assert "'c' is not to be pruned" in raised(fn, params, xs, method=methods)


@pytest.mark.full
def test_heads_transposes_and_slices_find_their_place():
    """A kernel with heads, one that is read transposed, and a fused one that is split first."""
    params = weights(heads=(8, 2, 3), out=(2, 3, 8), wide=(5, 8), fused=(5, 12))
    xs = batches(4, 8)

    def fn(p, x):
        y = jnp.einsum("nhd,hdo->no", jnp.einsum("ni,ihd->nhd", x, p["heads"]), p["out"])
        y = jnp.tanh(y @ p["wide"].T)
        a, b = jnp.split(p["fused"], [4], axis=1)
        return (y @ a), (jnp.sin(y) @ b)

    pruned, masks = jp.calibration.prune_in_order(fn, params, xs, WANDA, every_leaf)
    matrix, mask = by_hand(params["heads"].reshape(8, 6), xs)
    np.testing.assert_array_equal(masks["heads"], mask.reshape(8, 2, 3))
    ys = [x @ matrix for x in xs]
    matrix, mask = by_hand(params["out"].reshape(6, 8), ys)
    np.testing.assert_array_equal(masks["out"], mask.reshape(2, 3, 8))
    ys = [y @ matrix for y in ys]
    matrix, mask = by_hand(params["wide"].T, ys)
    np.testing.assert_array_equal(masks["wide"], mask.T)
    ys = [jnp.tanh(y @ matrix) for y in ys]
    np.testing.assert_array_equal(masks["fused"][:, :4], by_hand(params["fused"][:, :4], ys)[1])
    ys = [jnp.sin(y) for y in ys]
    np.testing.assert_array_equal(masks["fused"][:, 4:], by_hand(params["fused"][:, 4:], ys)[1])
    same = jax.tree.map(
        lambda w, p, m: bool((jnp.where(m, w, 0) == p).all()), params, pruned, masks
    )
    assert all(same.values())


def test_layers_that_flax_scans_are_kernels_too():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(8)(x)), None

    layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    xs = batches(5, 8, n=1)
    fn = lambda params, x: layers.apply({"params": params}, x, None)[0]
    params = layers.init(jax.random.key(0), xs[0], None)["params"]
    pruned, masks = jp.calibration.prune_in_order(fn, params, xs, WANDA)
    assert jp.sparsity(masks) == 0.5
    first, mask = by_hand(params["Dense_0"]["kernel"][0], xs)
    np.testing.assert_array_equal(pruned["Dense_0"]["kernel"][0], first)
    np.testing.assert_array_equal(masks["Dense_0"]["kernel"][0], mask)
    np.testing.assert_array_equal(jp.apply_masks(pruned, masks)["Dense_0"]["kernel"][0], first)
    assert masks["Dense_0"]["bias"] is None


def test_layers_of_a_scan_come_one_after_the_other():
    params, xs = weights(stack=(3, 6, 6)), batches(4, 6)
    loop = lambda p, x: jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum()), x, p["stack"])
    line = lambda p, x: jax.lax.fori_loop(0, 0, lambda i, h: h, _unrolled(p["stack"], x))
    scanned, masks = jp.calibration.prune_in_order(loop, params, xs, WANDA, every_leaf)
    plain, masks_too = jp.calibration.prune_in_order(line, params, xs, WANDA, every_leaf)
    np.testing.assert_array_equal(masks["stack"], masks_too["stack"])
    np.testing.assert_allclose(scanned["stack"], plain["stack"])
    assert (~masks["stack"]).sum((0, 1)).tolist() == [9] * 6
    backwards = lambda p, x: jax.lax.scan(
        lambda h, w: (jnp.tanh(h @ w), None), x, p["stack"], reverse=True
    )
    _, masks_back = jp.calibration.prune_in_order(backwards, params, xs, WANDA, every_leaf)
    np.testing.assert_array_equal(masks_back["stack"][2], by_hand(params["stack"][2], xs)[1])


def _unrolled(stack, x):
    for layer in range(3):
        x = jnp.tanh(x @ stack[layer])
    return x


def test_experts_are_pruned_side_by_side():
    params, xs = weights(experts=(2, 4, 6)), batches(2, 5, 4)
    fn = lambda p, x: jnp.einsum("eni,eio->eno", x, p["experts"])
    _, masks = jp.calibration.prune_in_order(fn, params, xs, WANDA, every_leaf)
    for e in range(2):
        mask = by_hand(params["experts"][e], [x[e] for x in xs])[1]
        np.testing.assert_array_equal(masks["experts"][e], mask)


def test_a_shared_leaf_is_pruned_once_and_read_pruned():
    params, xs = weights(a=(6, 6)), batches(4, 6)
    seen = []
    fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["a"]

    def method(weight, inputs):
        seen.append(inputs)
        return WANDA(weight, inputs)

    jp.calibration.prune_in_order(fn, params, xs, method, every_leaf)
    assert len(seen) == 1 and [x.shape for x in seen[0].batches] == [(4, 6)] * 3


CONVOLUTIONS = {
    "same": {"strides": 1, "padding": "SAME"},
    "strided": {"strides": (2, 1), "padding": "VALID"},
    "dilated": {"strides": 1, "padding": [(2, 1), (0, 3)], "kernel_dilation": (2, 1)},
    "fast": {"strides": 2, "padding": "SAME", "conv_general_dilated": jp.conv_general_dilated},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_a_product_of_patches(name):
    """The method sees matrices whose product is the convolution, and N:M along the channels."""
    module = nn.Conv(5, (3, 2), use_bias=False, **CONVOLUTIONS[name])
    xs = batches(2, 7, 6, 4, n=2)
    variables, seen = module.init(jax.random.key(0), xs[0]), []

    def method(weight, inputs):
        seen.append((weight, inputs))
        return jp.calibration.wanda((2, 4))(weight, inputs)

    pruned, masks = jp.calibration.prune_in_order(module.apply, variables, xs, method)
    ((weight, inputs),) = seen
    for x, rows in zip(xs, inputs.batches, strict=True):
        y = module.apply(variables, x)
        np.testing.assert_allclose((rows @ weight).reshape(y.shape), y, rtol=1e-4, atol=1e-5)
    mask = np.asarray(masks["params"]["kernel"])
    assert mask.shape == (3, 2, 4, 5) and (mask.sum(2) == 2).all()
    kernel = variables["params"]["kernel"]
    np.testing.assert_array_equal(pruned["params"]["kernel"], jnp.where(mask, kernel, 0))


class Network(nn.Module):
    """A convolution, a tied table, remat."""

    conv: bool = False

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(7, 8)
        x = table(tokens)
        if self.conv:
            x = nn.Conv(8, (3,), feature_group_count=2)(x)
        x = nn.remat(nn.Dense)(12)(x)
        return table.attend(nn.Dense(8)(nn.silu(x)))


TOKENS = [jnp.arange(10).reshape(2, 5) % 7]


@pytest.mark.full
def test_a_module_by_its_kernels():
    """Biases and the table stay; the structure and the dtypes too; also under jit."""
    module = Network()
    params = module.init(jax.random.key(0), TOKENS[0])["params"]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    fn = lambda p, tokens: module.apply({"params": p}, tokens)
    prune = lambda p: jp.calibration.prune_in_order(fn, p, TOKENS, WANDA)
    pruned, masks = prune(params)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), pruned) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    assert jp.sparsity(masks) == pytest.approx(0.5)
    np.testing.assert_array_equal(pruned["Embed_0"]["embedding"], params["Embed_0"]["embedding"])
    assert masks["Embed_0"]["embedding"] is None and masks["Dense_0"]["bias"] is None
    again = jax.jit(prune)(params)
    np.testing.assert_array_equal(again[1]["Dense_0"]["kernel"], masks["Dense_0"]["kernel"])


def raised(fn, params, xs, prunable=every_leaf, method=WANDA):
    with pytest.raises(ValueError) as error:
        jp.calibration.prune_in_order(fn, params, xs, method, prunable)
    return str(error.value)


@pytest.mark.full
def test_clear_errors():
    params, xs = weights(a=(6, 5), lost=(2, 2)), batches(4, 6)
    fn = lambda p, x: x @ p["a"]
    assert "reaches no product of 'lost'" in raised(fn, params, xs)
    params = {"a": params["a"]}
    assert "batches is empty" in raised(fn, params, [])
    assert "batch 1 is float32 (3, 6), and batch 0 is float32 (4, 6)" in raised(
        fn, params, [xs[0], xs[0][:3]]
    )
    assert "'a' have nan or inf in batch 1" in raised(
        fn, params, [xs[0], xs[0].at[0, 0].set(jnp.nan)]
    )
    gpt = jp.calibration.sparsegpt((2, 4))
    assert "'a': nm(2, 4) needs" in raised(fn, params, xs, method=gpt)
    with pytest.raises(TypeError) as error:
        jp.calibration.prune_in_order(fn, params, [jnp.ones((3, 2))], WANDA)
    assert "does not take these params and this batch" in "".join(error.value.__notes__)
    module = Network(conv=True)
    variables = module.init(jax.random.key(0), TOKENS[0])
    said = raised(module.apply, variables, TOKENS, jp.kernels)
    assert "Conv_0/kernel', a convolution of groups" in said
    branch = lambda p, x: jax.lax.cond(x.sum() > 0, lambda: x @ p["a"], lambda: 0 * x[:, :5])
    assert "reads them within cond" in raised(branch, params, xs)
