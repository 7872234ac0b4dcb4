"""Training in blocks has the masks and the losses of the masked dense training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jaxprune as jp

H, W, STEPS = 4, 4, 12
BY = jp.fast.by_outputs
KEY = jax.random.key(3)
RAMP = optax.polynomial_schedule(0.0, 0.7, power=3, transition_steps=9)
HIDDEN = jp.matching("*/kernel", exclude="head/*")
INNER = {
    "static": lambda: jp.static(KEY, 0.6, jp.uniform, BY),
    "rigl": lambda: jp.every(3, jp.rigl(KEY, 0.6, 0.5, jp.uniform, BY)),
    "set": lambda: jp.every(3, jp.set(KEY, 0.6, 0.5, jp.uniform, BY)),
    "gmp": lambda: jp.every(3, jp.prune(jp.magnitude, jp.uniform, RAMP, prunable=BY)),
}
OPTIMIZERS = {
    "adam": optax.adam(3e-2),
    "sgd": optax.sgd(0.1, momentum=0.9),
    "clipped adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
}


def network():
    draw = np.random.default_rng(0).standard_normal
    shapes = {"a": (18, 16), "b": (16, 20), "head": (20, 3)}  # 18: blocks over the edge
    params = {
        name: {
            "kernel": jnp.asarray(draw(shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for name, shape in shapes.items()
    }
    return params, jnp.asarray(draw((8, 18)), jnp.float32), jnp.asarray(draw((8, 3)), jnp.float32)


def loss(params, x, y):
    for name in ("a", "b"):
        x = jax.nn.relu(x @ params[name]["kernel"] + params[name]["bias"][None])
    return ((x @ params["head"]["kernel"] + params["head"]["bias"][None] - y) ** 2).mean()


def transform(name):
    return jp.fast.in_blocks(H, W, INNER[name](), HIDDEN)


def dense_run(optimizer, masks, steps=STEPS):
    params, x, y = network()
    tx = jp.sparsify(optimizer, masks)
    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    found = []
    for _ in range(steps):
        params, state, value = step(params, state)
        found.append((value, params, jp.get_masks(state)))
    return found


def block_run(optimizer, masks, steps=STEPS):
    params, x, y = network()
    training = jp.fast.block_training(loss, optimizer, masks)
    state, found = training.init(params), []
    step = jax.jit(training.step)
    for _ in range(steps):
        state, value = step(state, x, y)
        found.append((value, training.params(state), training.masks(state)))
    assert step._cache_size() == 1  # masks move without a new compilation
    return found, state, training


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("static", "sgd"),
        ("rigl", "adam"),
        ("gmp", "clipped adamw"),
        pytest.param("set", "adam", marks=pytest.mark.full),
        pytest.param("static", "clipped adamw", marks=pytest.mark.full),
        pytest.param("rigl", "sgd", marks=pytest.mark.full),
        pytest.param("gmp", "adam", marks=pytest.mark.full),
    ],
)
def test_the_masks_and_losses_of_the_masked_dense_run(name, optimizer):
    wanted = dense_run(OPTIMIZERS[optimizer], transform(name))
    found, _, _ = block_run(OPTIMIZERS[optimizer], transform(name))
    for (value, params, masks), (value_, params_, masks_) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(value, value_, rtol=2e-5)
        jax.tree.map(np.testing.assert_array_equal, masks, masks_)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
        jax.tree.map(close, params, params_)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), found[0][2], found[-1][2])
    assert jax.tree.leaves(moved)[0] == (name != "static")


def test_what_is_kept_is_what_is_stored():
    found, state, _ = block_run(optax.adam(1e-2), transform("rigl"), 2)
    # 5 blocks of inputs, 60 % pruned: 2 slots for each of 4 blocks of outputs
    assert state.params["a"]["kernel"].shape == (4, 2, H, W)
    moments = state.inner_state[0].mu["a"]["kernel"]
    assert moments.shape == (4, 2, H, W)
    assert jp.fast.slots_of(state) == {"a/kernel": 2, "b/kernel": 2}
    kept = found[-1][2]["a"]["kernel"]
    np.testing.assert_array_equal(kept[::H, ::W].sum(0), 2)


@pytest.mark.full
def test_gradual_pruning_cuts_the_slots_that_are_empty():
    params, x, y = network()
    training = jp.fast.block_training(loss, optax.adam(1e-2), transform("gmp"))
    state = training.init(params)
    step = jax.jit(training.step)
    for _ in range(STEPS):
        state, _ = step(state, x, y)
    small = training.cut(state)
    assert jp.fast.slots_of(state)["a/kernel"] == 5 and jp.fast.slots_of(small)["a/kernel"] == 1
    jax.tree.map(np.testing.assert_array_equal, training.params(small), training.params(state))
    assert small.inner_state[0].mu["b"]["kernel"].shape == (5, 1, H, W)
    for _ in range(2):
        (state, value), (small, same) = step(state, x, y), step(small, x, y)
        np.testing.assert_allclose(value, same, rtol=1e-5)


@pytest.mark.full
def test_seeds_side_by_side_are_a_loop_of_seeds():
    params, x, y = network()
    stack = jax.tree.map(lambda w: jnp.stack([w, -w]), params)
    training = jp.fast.block_training(loss, optax.adam(1e-2), transform("rigl"))
    slots = jp.fast.slots_of(training.init(params))
    lanes = jax.jit(jax.vmap(lambda p: training.init(p, slots)))(stack)
    step = jax.jit(jax.vmap(training.step, (0, None, None)))
    for _ in range(4):
        lanes, values = step(lanes, x, y)
    alone, one = training.init(jax.tree.map(lambda w: w[1], stack)), jax.jit(training.step)
    for _ in range(4):
        alone, value = one(alone, x, y)
    np.testing.assert_allclose(values[1], value, rtol=1e-5)
    np.testing.assert_array_equal(
        lanes.places["a/kernel"].inputs[1], alone.places["a/kernel"].inputs
    )
    with pytest.raises(ValueError, match=r"keeps is traced.*slots=jp.fast.slots_of"):
        jax.vmap(training.init)(stack)


@pytest.mark.full
def test_batches_over_explicit_axes():
    params, x, y = network()
    training = jp.fast.block_training(loss, optax.adam(3e-2), transform("static"))
    step, state = jax.jit(training.step), training.init(params)
    _, wanted = step(state, x, y)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        spread = [jax.device_put(a, jax.NamedSharding(mesh, jax.P("data"))) for a in (x, y)]
        _, value = step(training.init(params), *spread)
        over = jax.NamedSharding(mesh, jax.P(None, "data"))
        params["a"]["kernel"] = jax.device_put(params["a"]["kernel"], over)
        with pytest.raises(ValueError, match=r"'a/kernel' lies over explicit mesh axes, P.*Auto"):
            training.init(params)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.full
def test_masks_of_in_blocks_are_those_of_the_balanced_pattern():
    params, _, _ = network()
    ramp = optax.polynomial_schedule(0.0, 0.7, power=3, transition_steps=9)
    pattern = jp.block(H, W, balanced=True)
    by_pattern = jp.prune(jp.magnitude, jp.uniform, ramp, pattern, HIDDEN)
    blocks = jp.fast.in_blocks(H, W, jp.prune(jp.magnitude, jp.uniform, ramp, prunable=BY), HIDDEN)
    a, b = by_pattern.init(params), blocks.init(params)
    for step in (2, 6, 9):
        a = by_pattern.update(a, params, step=step)
        b = blocks.update(b, params, step=step)
        jax.tree.map(np.testing.assert_array_equal, a.masks, b.masks)


@pytest.mark.full
def test_attention_trains_in_blocks_like_its_masks():
    """Kernels (inputs, heads, features), (heads, features, outputs), and one that is read by .T."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {"query": (16, 4, 4), "out": (4, 4, 16), "up": (20, 16)}
    params = {
        n: {"kernel": jnp.asarray(draw(shape) / 4, jnp.float32)} for n, shape in shapes.items()
    }
    x, y = jnp.asarray(draw((6, 16)), jnp.float32), jnp.asarray(draw((6, 20)), jnp.float32)

    def loss(params, x, y):
        heads = jnp.tanh(jnp.einsum("bi,ihf->bhf", x, params["query"]["kernel"]))
        x = jnp.einsum("bhf,hfo->bo", heads, params["out"]["kernel"])
        return ((x @ params["up"]["kernel"].T - y) ** 2).mean()

    chosen = jp.matching("*", layouts={"up/kernel": jp.Layout(inputs=1, outputs=0)})
    masks = jp.fast.in_blocks(H, W, INNER["rigl"](), chosen)
    training = jp.fast.block_training(loss, optax.adam(3e-2), masks)
    tx = jp.sparsify(optax.adam(3e-2), masks)
    state, opt_state = training.init(params), tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(opt_state))
    assert state.params["query"]["kernel"].shape == state.params["out"]["kernel"].shape

    @jax.jit
    def dense_step(params, opt_state):
        value, grads = jax.value_and_grad(loss)(params, x, y)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    step = jax.jit(training.step)
    for _ in range(5):
        state, value = step(state, x, y)
        params, opt_state, wanted = dense_step(params, opt_state)
        np.testing.assert_allclose(value, wanted, rtol=2e-5)
    masks = jp.get_masks(opt_state)
    jax.tree.map(np.testing.assert_array_equal, training.masks(state), masks)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    jax.tree.map(close, training.params(state), params)
    assert masks["query"]["kernel"].shape == (16, 4, 4)


# --- bad input -----------------------------------------------------------------------------------


def test_a_kernel_that_is_read_otherwise_names_the_line():
    params, x, y = network()

    def penalized(params, x, y):
        return loss(params, x, y) + 1e-3 * (params["a"]["kernel"] ** 2).sum()

    def tied(params, x, y):
        return loss(params, x, y) + (x[:, :16] @ params["a"]["kernel"].T).mean()

    for fn, why in (
        (penalized, "is read by"),
        (tied, "is read with axes 1 as inputs"),
    ):
        training = jp.fast.block_training(fn, optax.adam(1e-3), transform("static"))
        with pytest.raises(ValueError, match=f"'a/kernel' ({why}).*test_training.py:") as error:
            training.step(training.init(params), x, y)
        assert "jp.matching(exclude=" in str(error.value)


def test_every_goes_inside_of_in_blocks():
    inside_out = jp.every(3, transform("static"))
    with pytest.raises(ValueError, match="block_training takes a transform of in_blocks"):
        jp.fast.block_training(loss, optax.adam(1e-3), inside_out)
    with pytest.raises(ValueError, match=r"needs positive integers; got 0"):
        jp.fast.in_blocks(0, 4, INNER["static"]())
    conv = {"conv": {"kernel": jnp.ones((3, 3, 4, 4))}}
    with pytest.raises(ValueError, match=r"'conv/kernel' has shape \(3, 3, 4, 4\)"):
        jp.fast.in_blocks(4, 4, INNER["static"]()).init(conv)


@pytest.mark.full
def test_given_masks_train_in_blocks_and_others_say_why():
    params, x, y = network()
    chosen = HIDDEN(params)
    select = lambda pattern: jp.select(jp.magnitude(chosen), jp.uniform, 0.5, pattern)
    masks = select(jp.block(H, W, balanced=True))
    of_blocks = jp.fast.block_masks(masks, H, W)
    assert of_blocks["a/kernel"].shape == (4, 5)
    fixed = jp.fast.in_blocks(H, W, jp.fixed(of_blocks), HIDDEN)
    training = jp.fast.block_training(loss, optax.sgd(0.1), fixed)
    state = training.init(params)
    jax.tree.map(np.testing.assert_array_equal, training.masks(state), masks)
    value = training.step(state, x, y)[1]
    np.testing.assert_allclose(value, loss(jp.apply_masks(params, masks), x, y), rtol=1e-5)

    with pytest.raises(ValueError, match=r"'a/kernel' is no mask of blocks of 4 x 4: \d+ weights"):
        jp.fast.block_masks(select(jp.unstructured), H, W)
    with pytest.raises(ValueError, match="like the params") as error:  # masks of weights
        jp.fast.in_blocks(H, W, jp.fixed(masks), HIDDEN).init(params)
    assert "jp.fast.block_masks(masks, h, w)" in error.value.__notes__[0]


@pytest.mark.full
def test_a_state_of_other_blocks_and_slots_that_are_missing():
    params, x, y = network()
    train = lambda h: jp.fast.block_training(
        loss, optax.sgd(0.1), jp.fast.in_blocks(h, W, INNER["static"](), HIDDEN)
    )
    training, state = train(H), train(2).init(params)
    with pytest.raises(
        ValueError, match=r"this state has blocks of 2 x 4 in 'a/kernel'.*has 4 x 4"
    ):
        training.step(state, x, y)
    with pytest.raises(ValueError, match=r"slots has no 'b/kernel'.*slots_of"):
        training.init(params, {"a/kernel": 2})
    state = training.init(params)
    with pytest.raises(ValueError, match=r"cut: slots has no 'b/kernel'"):
        training.cut(state, {"a/kernel": 2})
    with pytest.raises(ValueError, match=r"keeps 2 blocks, more than slots 1. Cut later, or to 2"):
        training.cut(state, {"a/kernel": 1, "b/kernel": 2})
    with pytest.raises(ValueError, match=r"'a/kernel' keeps is traced.*slots=\{"):
        jax.jit(training.cut)(state)
