"""SynFlow by hand, its law of conservation, and that it empties no layer where SNIP does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from tests.at_init import toy


def layer_sums(shares):
    return [float(share.sum()) for share in jax.tree.leaves(shares)]


def test_one_round_by_hand():
    shares = jp.at_init.flow_shares(toy.ones, toy.W)
    total = toy.ones(jax.tree.map(jnp.abs, toy.W))[0]
    assert total == pytest.approx(1.34)
    np.testing.assert_allclose(total * shares["first"], [[0.6, 0.3], [0.12, 0.32]], atol=1e-6)
    np.testing.assert_allclose(total * shares["last"], [[0.9, 0.44]], atol=1e-6)
    assert layer_sums(shares) == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.full
def test_flow_is_conserved_from_layer_to_layer():
    params = toy.mlp_params(jax.random.key(0))
    assert layer_sums(jp.at_init.flow_shares(toy.mlp_ones, params)) == pytest.approx(
        [1] * 3, abs=1e-5
    )
    masks = jp.at_init.synflow(toy.mlp_ones, params, 0.8, rounds=5)
    left = jp.apply_masks(params, masks)
    assert layer_sums(jp.at_init.flow_shares(toy.mlp_ones, left)) == pytest.approx(
        [1] * 3, abs=1e-5
    )


def test_of_one_round_it_is_its_score():
    params = toy.mlp_params(jax.random.key(0))
    scores = jp.at_init.flow_shares(toy.mlp_ones, params)
    masks = jp.at_init.synflow(toy.mlp_ones, params, 0.7, rounds=1)
    one_shot = jp.select(scores, jp.global_threshold, 0.7)
    jax.tree.map(np.testing.assert_array_equal, masks, one_shot)


def test_signs_of_weights_do_not_matter():
    params = toy.mlp_params(jax.random.key(0))
    both = (
        jp.at_init.synflow(toy.mlp_ones, p, 0.9, 10)
        for p in (params, jax.tree.map(jnp.abs, params))
    )
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_it_empties_no_layer_where_one_shot_methods_do():
    # eight weights for three layers, of which the widest is the first
    params, sparsity = toy.mlp_params(jax.random.key(3)), 1 - 8 / toy.WEIGHTS
    masks = jp.at_init.synflow(toy.mlp_ones, params, sparsity)
    assert sum(toy.flat(masks)) == 8 and not any(jp.at_init.empty_layers(masks).values())
    assert (
        sum(layer_sums(jp.at_init.flow_shares(toy.mlp_ones, jp.apply_masks(params, masks)))) > 2.9
    )
    with pytest.warns(UserWarning, match="keeps none of its weights"):
        one_shot = jp.select(
            jp.at_init.flow_shares(toy.mlp_ones, params), jp.global_threshold, sparsity
        )
    assert any(jp.at_init.empty_layers(one_shot).values())


def test_a_network_that_fell_apart_has_no_flow():
    cut = toy.W | {"last": jnp.zeros((1, 2))}
    assert toy.flat(jp.at_init.flow_shares(toy.ones, cut)).tolist() == [0] * 6
    with pytest.raises(ValueError, match=r"synflow: all scores are 0.*the order of their indices"):
        jp.at_init.synflow(toy.ones, cut, 0.5, rounds=3)
    masks = jax.jit(lambda p: jp.at_init.synflow(toy.ones, p, 0.5, rounds=3))(
        cut
    )  # nothing is known
    assert toy.kept(masks) == [0, 1, 2]  # all are worth nothing: ties


# --- norms ---------------------------------------------------------------------------------------


class Normed(nn.Module):
    """Two layers with a norm between them."""

    norm: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6)(x)
        group = self.norm is nn.GroupNorm
        x = nn.GroupNorm(2)(x) if group else nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(3)(nn.relu(x))


def normed(norm):
    model, x = Normed(norm), jnp.ones((1, 4))
    variables = dict(model.init(jax.random.key(0), x))
    params = variables.pop("params")
    return lambda params: model.apply({"params": params, **variables}, x), params


def test_batch_norm_in_evaluation_mode_conserves():
    assert layer_sums(jp.at_init.flow_shares(*normed(nn.BatchNorm))) == pytest.approx(
        [1, 1], abs=1e-5
    )


def test_a_norm_of_what_it_sees_is_refused():
    with pytest.raises(ValueError, match="falls as weights of 'Dense_0/kernel' grow") as error:
        jp.at_init.synflow(*normed(nn.GroupNorm), 0.5)
    assert "without group or layer norm" in str(error.value)


# --- deep networks -------------------------------------------------------------------------------


def deep(params, x):
    return jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, params["kernel"])[0]


@pytest.mark.full
def test_deep_networks_overflow_nowhere_but_on_the_way_forward():
    # 32 units: each layer makes 32 * E|w| = 6.4 times as much; 6.4^50 = 10^40
    params = {"kernel": 0.25 * jax.random.normal(jax.random.key(0), (50, 32, 32))}
    with pytest.raises(ValueError, match=r"not finite.*let it take 1e-30 \* ones"):
        jp.at_init.synflow(lambda p: deep(p, jnp.ones((1, 32))), params, 0.9)
    small = lambda p: deep(p, 1e-30 * jnp.ones((1, 32)))
    sums = np.asarray(jp.at_init.flow_shares(small, params)["kernel"]).sum((1, 2))
    np.testing.assert_allclose(sums, 1, rtol=1e-4)
    masks = jp.at_init.synflow(small, params, 0.9, rounds=5)
    with jax.enable_x64(True):
        double = {"kernel": jnp.asarray(np.asarray(params["kernel"], np.float64))}
        wide = jp.at_init.synflow(lambda p: deep(p, jnp.ones((1, 32))), double, 0.9, rounds=5)
    assert (np.asarray(masks["kernel"]) == np.asarray(wide["kernel"])).mean() > 0.9999
