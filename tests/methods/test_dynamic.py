"""What dynamic methods are made of: the random start, and updates that keep every leaf's count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.methods.dynamic import random_start, regrow, smallest
from jaxprune.trees import named_leaves
from tests.quick import quick
from tests.test_contract import OPTIMIZERS
from tests.transforms import loss, tiny_params

KEY = jax.random.key(0)
METHODS = {
    "set": lambda key: jp.set(key, 0.8, 0.4),
    "set_two_sided": lambda key: jp.set(key, 0.8, 0.4, two_sided=True),
    "rigl": lambda key: jp.rigl(key, 0.8, 0.4),
    "itop": lambda key: jp.itop(jp.rigl(key, 0.8, 0.4)),
    "granet_levelled": lambda key: jp.granet(key, optax.constant_schedule(0.8), 0.4),
}
methods = pytest.mark.parametrize("method", quick(METHODS, "set_two_sided", "granet_levelled"))


def kept(masks):
    return [int(mask.sum()) for mask in jax.tree.leaves(masks)]


def run(tx, params, steps):
    """Final params and state, and the masks after every step, stacked."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), jp.get_masks(state)

    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))
    return jax.lax.scan(step, (params, state), length=steps)


# --- laws ----------------------------------------------------------------------------------------


@methods
def test_the_first_masks_are_exact_and_the_first_forward_is_sparse(method):
    params = tiny_params()
    state = jp.sparsify(optax.adam(0.1), METHODS[method](KEY)).init(params)
    masks, wanted = jp.get_masks(state), jp.erk(jp.kernels(params), 0.8)
    for (path, mask), (_, sparsity) in zip(named_leaves(masks), named_leaves(wanted), strict=True):
        if mask is not None:
            assert int((~mask).sum()) == round(sparsity * mask.size), path
    sparse = jp.apply_masks(params, masks)
    assert int((sparse["Dense_0"]["kernel"] != 0).sum()) == int(masks["Dense_0"]["kernel"].sum())


@pytest.mark.full
@methods
def test_counts_of_every_layer_never_change_over_100_updates(method):
    params = tiny_params()
    tx = jp.sparsify(optax.adam(0.02), METHODS[method](KEY))
    first = kept(jp.get_masks(tx.init(params)))
    _, masks = jax.jit(lambda p: run(tx, p, 100))(params)
    for mask, n in zip(jax.tree.leaves(masks), first, strict=True):
        np.testing.assert_array_equal(mask.reshape(100, -1).sum(1), n)
        assert (mask[1:] != mask[:-1]).any()  # and they are not kept by never changing


@pytest.mark.full
@methods
def test_keys_in_a_vmap_are_those_of_a_loop_and_explore_different_masks(method):
    params, keys = tiny_params(), jax.vmap(jax.random.key)(jnp.array([0, 0, 1]))

    def train(key):
        tx = jp.sparsify(optax.adam(0.02), jp.every(2, METHODS[method](key)))
        return run(tx, params, 6)[1]

    stacked, alone = jax.jit(jax.vmap(train))(keys), jax.jit(train)
    lanes = [jax.tree.map(lambda m, i=i: m[i], stacked) for i in range(3)]
    jax.tree.map(np.testing.assert_array_equal, lanes[0], alone(keys[0]))
    jax.tree.map(np.testing.assert_array_equal, lanes[2], alone(keys[2]))
    assert jp.overlap(lanes[0], lanes[1]) == 1
    last = [jax.tree.map(lambda m: m[-1], lane) for lane in lanes]
    assert jp.overlap(last[0], last[2]) < 0.9


class Seen:
    """An optimizer that keeps a flat copy of the state it was given, where no one looks for one."""

    @staticmethod
    def of(inner):
        inner = optax.with_extra_args_support(inner)

        def flat(state):
            return [leaf.reshape(-1) for leaf in jax.tree.leaves(state)]

        def init(params):
            state = inner.init(params)
            return {"own": state, "given": flat(state)}

        def update(grads, state, params=None, **extra):
            updates, new = inner.update(grads, state["own"], params, **extra)
            return updates, {"own": new, "given": flat(state["own"])}

        return optax.GradientTransformationExtraArgs(init, update)


@pytest.mark.full
@pytest.mark.parametrize(
    "optimizer", quick(OPTIMIZERS, "adam", "multi_steps", "adafactor_factored")
)
def test_what_grows_starts_at_zero_with_zero_moments(optimizer):
    """The state that the optimizer is given at an update has zeros at every new weight."""
    params = tiny_params()
    tx = jp.sparsify(Seen.of(OPTIMIZERS[optimizer]()), jp.every(4, jp.rigl(KEY, 0.5, 0.5)))
    (params, state), _ = jax.jit(lambda p: run(tx, p, 4))(params)
    old = {m.shape: m for m in jax.tree.leaves(jp.get_masks(state))}
    grads = jax.grad(loss)(params)
    _, state = jax.jit(tx.update)(grads, state, params)
    new = {m.shape: m for m in jax.tree.leaves(jp.get_masks(state))}
    inner, checked = state.inner_state, 0
    for given, leaf in zip(inner["given"], jax.tree.leaves(inner["own"]), strict=True):
        if leaf.shape in new:
            born = new[leaf.shape] & ~old[leaf.shape]
            assert born.any()
            np.testing.assert_array_equal(given[born.reshape(-1)], 0)
            checked += 1
    assert checked or optimizer == "adafactor_factored"
    for w, m in ((params["Dense_0"]["kernel"], (16, 24)), (params["Dense_1"]["kernel"], (24, 8))):
        np.testing.assert_array_equal(w[new[m] & ~old[m]], 0)


# --- the paper's rule: an update takes the place of a step ---------------------------------------


def test_an_update_replaces_the_step_if_asked_to():
    params = tiny_params()
    tx = jp.sparsify(
        optax.adam(0.05), jp.every(3, jp.rigl(KEY, 0.6, 0.5)), update_replaces_step=True
    )
    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    counts = []
    for i in range(7):
        updates, new = step(params, state)
        old, masks = jp.get_masks(state), jp.get_masks(new)
        moved = optax.apply_updates(params, updates)
        counts.append(int(optax.tree.get(new, "count")))
        if i % 3 == 0:
            # kept weights rest, dropped ones are zero, biases rest: nothing but the masks changed
            assert jp.overlap(old, masks) < 1
            jax.tree.map(np.testing.assert_array_equal, moved, jp.apply_masks(params, masks))
            for moment in ("mu", "nu"):
                before, after = (optax.tree.get(s, moment) for s in (state, new))
                jax.tree.map(np.testing.assert_array_equal, after, jp.apply_masks(before, masks))
        else:
            assert (moved["temperature"] != params["temperature"]).all()
        params, state = moved, new
    assert counts == [0, 1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_an_update_that_changes_nothing_replaces_the_step_too(fraction):
    params = tiny_params()
    rigl = jp.every(2, jp.rigl(KEY, 0.6, fraction), start=1)
    tx = jp.sparsify(optax.adam(0.05), rigl, update_replaces_step=True)
    state, counts = tx.init(params), []
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    for _ in range(5):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        counts.append(int(optax.tree.get(state, "count")))
    assert counts == [1, 1, 2, 2, 3]


def test_a_transform_that_acts_once_replaces_that_step_alone():
    """It was due by the state that it had before: afterwards it never is again."""
    params = tiny_params()
    once = jp.every(1, jp.prune(jp.magnitude, jp.uniform, 0.5), start=1)
    tx = jp.sparsify(optax.adam(0.05), once, update_replaces_step=True)
    state, counts = tx.init(params), []
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss)(p), s, p))
    for _ in range(4):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
        counts.append(int(optax.tree.get(state, "count")))
    assert counts == [1, 1, 2, 3]


def test_static_masks_replace_no_step():
    params = tiny_params()
    tx = jp.sparsify(optax.adam(0.05), jp.every(1, jp.static(KEY, 0.6)), update_replaces_step=True)
    _, state = tx.update(params, tx.init(params), params)
    assert int(optax.tree.get(state, "count")) == 1


def test_a_step_is_replaced_by_what_has_a_cadence():
    with pytest.raises(ValueError, match=r"Give it a cadence: every\(100, transform\)"):
        jp.sparsify(optax.adam(0.05), jp.rigl(KEY, 0.6), update_replaces_step=True)


def test_by_default_the_optimizer_steps_with_the_new_masks_at_once():
    params = tiny_params()
    tx = jp.sparsify(optax.sgd(0.1), jp.rigl(KEY, 0.6, 0.5))
    state = tx.init(params)
    params = jp.apply_masks(params, jp.get_masks(state))
    grads = jax.grad(loss)(params)
    updates, new = jax.jit(tx.update)(grads, state, params)
    born = jp.get_masks(new)["Dense_0"]["kernel"] & ~jp.get_masks(state)["Dense_0"]["kernel"]
    moved, slope = (tree["Dense_0"]["kernel"][born] for tree in (updates, grads))
    np.testing.assert_allclose(moved, -0.1 * slope, rtol=1e-6)


# --- in combination ------------------------------------------------------------------------------


def test_in_a_chain_each_method_rewires_its_own_leaves():
    params = tiny_params()
    first, second = jp.matching("Dense_0/kernel"), jp.matching("Dense_1/kernel")
    tx = jp.sparsify(
        optax.sgd(0.05),
        jp.chain(
            jp.rigl(KEY, 0.5, 0.4, jp.uniform, prunable=first),
            jp.set(KEY, 0.75, 0.4, jp.uniform, prunable=second),
        ),
    )
    (_, state), masks = run(tx, params, 3)
    assert kept(jp.get_masks(state)) == [16 * 24 // 2, 24 * 8 // 4]
    assert all((m[0] != m[2]).any() for m in jax.tree.leaves(masks))


def test_a_fraction_that_fades_ends_the_rewiring():
    params = tiny_params()
    fading = optax.cosine_decay_schedule(0.5, 10)
    tx = jp.sparsify(optax.adam(0.05), jp.every(2, jp.rigl(KEY, 0.6, fading), stop=8))
    _, masks = run(tx, params, 20)
    for mask in jax.tree.leaves(masks):
        changed = (mask[1:] != mask[:-1]).any((1, 2))
        # masks after step i; updates at 0, 2, 4, 6 and, with the fraction at its end, 8
        np.testing.assert_array_equal(np.flatnonzero(changed) + 1, [2, 4, 6])


def test_a_growth_score_of_the_users_own():
    # gradients with noise, and dropping at random: both are functions
    key = jax.random.key(3)

    def noisy(params, *, grads, **context):
        noise = jp.random(key)(params, **context)
        return jax.tree.map(lambda g, n: abs(g) * n, grads, noise)

    def any_weight(masks, params, fraction):
        return jp.dynamic.drop(masks, jp.random(key)(params), jp.dynamic.counts(masks, fraction))

    own = jp.MaskTransform(
        init=random_start(KEY, 0.7, jp.uniform, jp.kernels),
        update=regrow(any_weight, noisy, 0.3, jp.kernels),
    )
    _, masks = run(jp.sparsify(optax.adam(0.02), own), tiny_params(), 5)
    for mask in jax.tree.leaves(masks):
        np.testing.assert_array_equal(mask.reshape(5, -1).sum(1), round(0.3 * mask[0].size))


@pytest.mark.full
def test_nothing_is_rewired_at_fraction_zero_and_all_may_be_at_one():
    params = {"kernel": jnp.arange(1.0, 21).reshape(4, 5)}
    masks = jp.select(params, jp.uniform, 0.5)
    rest = regrow(smallest, jp.gradient, 0.0, jp.kernels)
    state = rest(jp.MaskState(masks), params, grads=params, step=0)
    assert jp.overlap(state.masks, masks) == 1
    renew = regrow(smallest, jp.gradient, 1.0, jp.kernels)
    state = renew(jp.MaskState(masks), params, grads={"kernel": -params["kernel"][::-1]}, step=0)
    np.testing.assert_array_equal(state.masks["kernel"], masks["kernel"][::-1])


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "said"),
    [
        (1.5, "the drop fraction is 1.5"),
        (-0.1, "the drop fraction is -0.1"),
        (float("nan"), "the drop fraction is nan"),
        (optax.linear_schedule(1.2, 0.0, 10), "the drop fraction starts at 1.2"),
        (optax.linear_schedule(0.3, -1.0, 10), "the drop fraction ends at -1"),
    ],
)
@pytest.mark.parametrize("method", [jp.set, jp.rigl])
def test_a_drop_fraction_out_of_range(method, fraction, said):
    with pytest.raises(ValueError, match=said) as error:
        method(KEY, 0.9, fraction)
    assert "in [0, 1]" in str(error.value) and "cosine_decay_schedule" in str(error.value)


@pytest.mark.parametrize("method", [jp.static, jp.set, jp.rigl])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_layer_that_would_be_empty(method, jitted):
    params = {"big": jnp.ones((40, 50)), "small": jnp.ones((3, 5))}
    init = method(KEY, 0.97, allocation=jp.uniform).init
    with pytest.raises(ValueError, match="'small' would keep 0 of its 15 weights") as error:
        (jax.jit(init) if jitted else init)(params)
    assert "erk" in str(error.value) and "per_layer" in str(error.value)
    erk = method(KEY, 0.97).init(params)
    assert kept(erk.masks)[1] > 0


@pytest.mark.parametrize("method", [jp.static, jp.set, jp.rigl])
def test_a_sparsity_out_of_range(method):
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 95. For 95% write 0.95"):
        method(KEY, 95.0)
    with pytest.raises(ValueError, match=r"how many weights of 20 are .* For 95% write 0.95"):
        method(KEY, 95).init({"kernel": jnp.ones((4, 5))})  # an integer is a number of weights


@pytest.mark.parametrize("method", [jp.static, jp.set, jp.rigl])
def test_no_key(method):
    with pytest.raises(TypeError, match=r"needs a key of jax\.random.*got 0\.9"):
        method(0.9, 0.9)


@pytest.mark.parametrize("method", [jp.static, jp.set, jp.rigl, jp.granet, jp.random])
@pytest.mark.parametrize("given", [(0.9,), (np.float32(0.9),), ({"kernel": jnp.ones((64, 64))},)])
def test_a_key_that_was_left_out_is_what_is_missing(method, given):
    with pytest.raises(TypeError, match=r"\(key, ...\) needs a key of jax\.random.*got") as error:
        method(*given)
    assert method.__name__ in str(error.value) and len(str(error.value)) < 150


def test_keys_of_any_kind_are_keys():
    for key in (jax.random.PRNGKey(0), jax.random.key(0), jax.random.key(0, impl="rbg")):
        jp.rigl(key, 0.9)
    jp.rigl(key=KEY, sparsity=0.9)
    assert jp.rigl.__name__ == "rigl"
    jax.vmap(lambda key: jp.static(key, 0.5).init({"kernel": jnp.ones((4, 4))}))(
        jax.random.split(KEY, 2)
    )


@pytest.mark.full
def test_no_gradients_to_grow_by():
    params = tiny_params()
    rigl = jp.rigl(KEY, 0.5)
    with pytest.raises(ValueError, match="gradient needs gradients"):
        rigl.update(rigl.init(params), params, step=0)


def test_a_gradient_that_is_missing_for_a_leaf():
    params = {"Dense_0": {"kernel": jnp.ones((4, 5))}, "Dense_1": {"kernel": jnp.ones((5, 3))}}
    grads = {"Dense_0": {"kernel": jnp.ones((4, 5))}, "Dense_1": {"kernel": None}}
    rigl = jp.rigl(KEY, 0.5)
    with pytest.raises(ValueError, match="needs the gradient of 'Dense_1/kernel'") as error:
        rigl.update(rigl.init(params), params, grads=grads, step=0)
    assert "exclude" in str(error.value)


def test_stop_before_start():
    with pytest.raises(ValueError, match="start <= stop; got start=10, stop=5"):
        jp.every(5, jp.rigl(KEY, 0.9), start=10, stop=5)


def test_nothing_prunable():
    with pytest.raises(ValueError, match="nothing is prunable"):
        jp.rigl(KEY, 0.9).init({"bias": jnp.ones(3)})
