"""`fast` is the masked function, whatever form it takes, and says why."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jaxprune as jp
from jaxprune.fast import choose
from jaxprune.fast.forms import FORMS, candidates
from jaxprune.fast.forms.candidates import block_sizes

DRAW = np.random.default_rng(0).standard_normal
NAMES = {
    "blocks of 8 x 8, by rows",
    "blocks of 8 x 8, by columns",
    "blocks of 8 x 8, unrolled",
    "single weights, BCSR",
    "cut to used inputs and outputs",
}


def network():
    params = {
        "a": {"kernel": jnp.asarray(DRAW((40, 32)), jnp.float32), "bias": jnp.ones(32)},
        "head": jnp.asarray(DRAW((32, 3)), jnp.float32),
    }
    mask = np.zeros((40, 32), bool)
    for i, j in ((0, 1), (3, 1), (3, 2)):  # blocks of 8 x 8: two for one block of outputs
        mask[8 * i : 8 * i + 8, 8 * j : 8 * j + 8] = True
    masks = {"a": {"kernel": jnp.asarray(mask), "bias": None}, "head": None}
    return params, masks, jnp.asarray(DRAW((4, 40)), jnp.float32)


def apply(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None]) @ params["head"]


def favor(monkeypatch, winner):
    """Times in which one form is twice as fast as dense, and the others twice as slow."""

    def times(kernel, forms, products, rounds, clock):
        return {"dense": 2.0} | {own.name: 1.0 if own.name == winner else 4.0 for own in forms}

    monkeypatch.setattr(choose, "times", times)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_form_is_the_masked_function(name, monkeypatch):
    params, masks, x = network()
    favor(monkeypatch, name)
    net = jp.fast.fast(apply, params, masks, x)
    (choice,) = net.choices
    assert (choice.leaf, choice.form, choice.ratio) == ("a/kernel", name, 2.0)
    assert (choice.rows, choice.density) == (4, 3 * 64 / (40 * 32))
    assert isinstance(net.params["a"]["kernel"], FORMS)
    masked = jp.apply_masks(params, masks)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    close(jax.jit(net.fn)(net.params, x), apply(masked, x))
    close(net.fn(net.params, x[:1]), apply(masked, x[:1]))  # another batch size
    close(jax.vmap(net.fn, (None, 0))(net.params, x[:, None])[:, 0], apply(masked, x))
    both = (net.fn, net.params), (apply, masked)
    close(*(jax.grad(lambda x, f=f, p=p: (f(p, x) ** 2).sum())(x) for f, p in both))


def test_the_mask_of_the_network_has_every_form():
    params, masks, _ = network()
    words, made = candidates(params["a"]["kernel"], np.asarray(masks["a"]["kernel"]))
    assert {own.name for own in made} >= NAMES and words == "blocks of 8 x 8"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_function_that_is_compiled_and_casts_its_weights(monkeypatch, dtype):
    """As flax's layers with a dtype do."""
    params, masks, x = network()
    favor(monkeypatch, "blocks of 8 x 8, by columns")

    @jax.jit
    def cast(params, x):
        return apply(jax.tree.map(lambda w: w.astype(dtype), params), x.astype(dtype))

    net = jp.fast.fast(cast, params, masks, x)
    assert isinstance(net.params["a"]["kernel"], FORMS)
    y, wanted = net.fn(net.params, x), cast(jp.apply_masks(params, masks), x)
    assert y.dtype == wanted.dtype == dtype
    rtol, atol = (1e-5, 1e-5) if dtype == jnp.float32 else (0.05, 0.2)  # entries are about 10
    both = (np.asarray(v, np.float32) for v in (y, wanted))
    np.testing.assert_allclose(*both, rtol=rtol, atol=atol)


def test_export_of_a_network_in_blocks(monkeypatch):
    params, masks, x = network()
    favor(monkeypatch, "blocks of 8 x 8, by rows")
    net = jp.fast.fast(apply, params, masks, x)
    run = jax.jit(lambda x: net.fn(net.params, x))
    exported = jax.export.export(run)(jax.ShapeDtypeStruct(x.shape, x.dtype))
    np.testing.assert_array_equal(exported.call(x), run(x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_inputs_that_are_sharded_along_the_batch(monkeypatch, kind):
    params, masks, _ = network()
    x = jnp.asarray(DRAW((16, 40)), jnp.float32)
    favor(monkeypatch, "blocks of 8 x 8, by columns")
    net = jp.fast.fast(apply, params, masks, x)
    wanted = apply(jp.apply_masks(params, masks), x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        y = jax.jit(net.fn)(net.params, spread)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["blocks of 8 x 8, by columns", "single weights, BCSR"])
def test_kernels_over_explicit_axes(monkeypatch, name):
    """The form lies whole on every device, and its product is sharded as the dense one."""
    favor(monkeypatch, name)
    params, masks, x = network()
    kernel, mask = params["a"]["kernel"], masks["a"]["kernel"]
    fn = lambda params, x: (x @ params["w"]).sum(1)
    wanted = (x @ jnp.where(mask, kernel, 0)).sum(1)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        over = lambda x, *axes: jax.device_put(x, jax.NamedSharding(mesh, jax.P(*axes)))
        params, x = {"w": over(kernel, None, "model")}, over(x, "data", None)
        net = jp.fast.fast(fn, params, {"w": mask}, x)
        both = jax.jit(lambda p, x: (net.fn(p, x), jax.grad(lambda x: net.fn(p, x).sum())(x)))
        y, dx = both(net.params, x)
        assert jax.typeof(y) == jax.typeof(jax.jit(fn)(params, x))
    assert isinstance(net.params["w"], FORMS)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        dx, jnp.tile(jnp.where(mask, kernel, 0).sum(1), (4, 1)), rtol=1e-5, atol=1e-5
    )


@pytest.mark.full
def test_a_form_is_really_faster_here():
    kernel = jnp.asarray(DRAW((512, 512)), jnp.float32)
    mask = jp.select({"w": jnp.abs(kernel)}, jp.uniform, 0.875, jp.block(64, 64, balanced=True))
    x = jnp.ones((32, 512))
    net = jp.fast.fast(lambda p, x: x @ p["w"], {"w": kernel}, mask, x, clock=time.process_time)
    assert net.choices[0].form != "dense" and net.choices[0].ratio > 1.1


@pytest.mark.parametrize(
    ("size", "sizes"), [((16, 16), (16, 16)), ((1, 64), (1, 64)), ((64, 64), (64, 64))]
)
def test_the_size_of_blocks_is_read_off_the_mask(size, sizes):
    pattern = jp.block(*size, balanced=True)
    mask = np.asarray(pattern(jnp.asarray(DRAW((256, 256))), 0.75))
    assert block_sizes(mask)[0] == sizes


# --- what stays dense ----------------------------------------------------------------------------


def test_what_stays_dense_says_why(monkeypatch):
    params, masks, x = network()
    kernel, mask = params["a"]["kernel"], masks["a"]["kernel"]
    square = lambda k: k[:32, :32]
    params = {
        **{n: square(kernel) for n in ("tied", "squared", "slow", "unread")},
        "half": jnp.asarray(DRAW((32, 32)), jnp.float32),
        "conv": jnp.ones((1, 1, 16, 32)),
    }
    masks = {n: square(mask) for n in params} | {
        "half": params["half"] > 0,
        "conv": jnp.ones((1, 1, 16, 32), bool),
    }

    def fn(p, x):
        x = x @ p["tied"] @ p["tied"].T @ p["slow"] @ p["half"] + (p["squared"] ** 2).sum()
        dims = ("NHWC", "HWIO", "NHWC")
        image = jax.lax.conv_general_dilated(
            *(x[:, None, None], p["conv"], (1, 1), "SAME"),
            dimension_numbers=dims,
            feature_group_count=2,
        )
        return image[:, 0, 0]

    favor(monkeypatch, "none")
    net = jp.fast.fast(fn, params, masks, x[:, :32])
    why = {choice.leaf: choice.others for choice in net.choices}
    assert {choice.form for choice in net.choices} == {"dense"}
    assert why["tied"].startswith("it is read in two ways, with axes 0 as inputs and 1 as outputs")
    assert "and with axes 1 as inputs and 0 as outputs, at test_choose.py:" in why["tied"]
    assert why["squared"].startswith("it is read by")
    assert why["unread"] == "no product reads it"
    assert why["half"] == "too dense for any other form"
    assert why["slow"].startswith("nothing is faster: ") and "by rows 0.5" in why["slow"]
    assert why["conv"].startswith("it is the kernel of a convolution of groups")
    assert all(name in str(net) for name in params)
    masked = jp.apply_masks(params, masks)
    np.testing.assert_allclose(net.fn(net.params, x[:, :32]), fn(masked, x[:, :32]), rtol=1e-5)


def test_bad_input_says_the_way_out():
    params, masks, x = network()
    with pytest.raises(ValueError, match=r"there are no masks.*get_masks\(opt_state\)"):
        jp.fast.fast(apply, params, jax.tree.map(lambda m: None, masks), x)
    with pytest.raises(ValueError, match=r"'a/kernel' must be known.*jp.fast.block_training"):
        jax.jit(lambda m: jp.fast.fast(apply, params, m, x).params["head"])(masks)
    with pytest.raises(ValueError, match="'a/kernel'"):
        wrong = {"a": {"kernel": jnp.ones((2, 2), bool), "bias": None}, "head": None}
        jp.fast.fast(apply, params, wrong, x)
