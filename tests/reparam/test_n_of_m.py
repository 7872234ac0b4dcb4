"""N:M training: the worked numbers, along which axis groups lie, and what can't be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

# the example has inputs in rows; a kernel has them in columns
W = jnp.array([[0.9, -0.2, 0.3, -0.8], [0.1, 0.4, -0.5, 0.2]]).T
MASK = np.array([[1, 0, 0, 1], [0, 1, 1, 0]], bool).T
G = np.array([[0.1, 0.2, -0.3, 0.4], [-0.1, 0.05, 0.2, 0.3]]).T


def slope(method, step=None):
    """The gradient of a loss whose gradient at the weights in use is G."""
    learned = method.init({"kernel": W})
    of = lambda learned: jnp.sum(G * method.apply(learned, step=step)["kernel"])
    return jax.grad(of)(learned).weights["kernel"]


def test_the_worked_example_of_sr_ste():
    method = jp.reparam.sr_ste(2, 4, 0.5)
    used = method.apply(method.init({"kernel": W}))["kernel"]
    np.testing.assert_array_equal(used, np.where(MASK, W, 0))
    wanted = [[0.1, 0.1, -0.15, 0.4], [-0.05, 0.05, 0.2, 0.4]]
    np.testing.assert_allclose(slope(method).T, wanted, atol=1e-6)
    assert float(slope(jp.reparam.sr_ste(2, 4))[1, 0]) == pytest.approx(0.19996, abs=1e-6)
    np.testing.assert_allclose(slope(jp.reparam.sr_ste(2, 4, 0.0)), G, atol=1e-7)


def test_the_worked_example_of_decayed_flow():
    method = jp.reparam.decayed_flow(2, 4, lambda step: 0.25)
    used = method.apply(method.init({"kernel": W}), step=0)["kernel"]
    wanted = [[0.9, -0.05, 0.075, -0.8], [0.025, 0.4, -0.5, 0.05]]
    np.testing.assert_allclose(used.T, wanted, atol=1e-6)
    np.testing.assert_allclose(slope(method, 0), np.where(MASK, G, G / 4), atol=1e-6)


@pytest.mark.parametrize(
    ("decay", "factors"),
    [
        (lambda t: jnp.maximum(0, 1 - 2e-4 * t), (0.98, 0.8, 0)),
        (lambda t: jnp.exp(-2e-4 * t), (0.9802, 0.8187, 0.3679)),
    ],
)
def test_published_decays(decay, factors):
    method = jp.reparam.decayed_flow(2, 4, decay)
    learned = method.init({"kernel": W})
    for step, factor in zip((100, 1000, 5000), factors, strict=True):
        used = method.apply(learned, step=jnp.float32(step))["kernel"]
        np.testing.assert_allclose(used[1, 0], factor * W[1, 0], atol=1e-5)


def test_the_frames_of_stepwise_flow():
    weights = {"kernel": jnp.arange(1.0, 17.0)[:, None]}
    method = jp.reparam.stepwise_flow(1, 16, steps=50)
    learned = method.init(weights)
    used = jax.jit(jax.vmap(lambda step: method.apply(learned, step=step)["kernel"]))
    kept = np.asarray((used(jnp.arange(60)) != 0).sum((1, 2)))
    np.testing.assert_array_equal(kept, np.repeat([15, 8, 4, 2, 1], [10, 10, 10, 10, 20]))
    np.testing.assert_allclose(slope(jp.reparam.stepwise_flow(2, 4, 2), 1), G, atol=1e-7)


def test_the_frames_of_geometric_flow():
    """8N:8M, 4N:4M, 2N:2M, N:M: a quarter in ever smaller groups."""
    weights = {"kernel": jnp.arange(1.0, 33.0)[:, None]}
    method = jp.reparam.stepwise_flow(1, 4, 40, frames=jp.reparam.geometric)
    learned = method.init(weights)
    used = jax.jit(jax.vmap(lambda step: method.apply(learned, step=step)["kernel"][:, 0]))
    kept = np.asarray(used(jnp.arange(0, 60, 10)) != 0)
    for i, size in enumerate((32, 16, 8, 4, 4, 4)):
        largest = np.arange(32) % size >= size - size // 4  # they rise
        np.testing.assert_array_equal(kept[i], largest)
    assert jp.reparam.geometric(2, 4) == [(16, 32), (8, 16), (4, 8), (2, 4)]
    assert jp.reparam.geometric(1, 4, largest=2) == [(2, 8), (1, 4)]
    np.testing.assert_allclose(slope(_geometric(largest=1), 1), G, atol=1e-7)


def _geometric(**how):
    return jp.reparam.stepwise_flow(2, 4, 8, frames=partial(jp.reparam.geometric, **how))


def test_heads_are_grouped_along_the_inputs():
    params = {"query": {"kernel": jax.random.normal(jax.random.key(0), (8, 2, 3))}}
    method = jp.reparam.sr_ste(2, 4)
    used = method.apply(method.init(params))["query"]["kernel"]
    assert ((used != 0).reshape(2, 4, 6).sum(1) == 2).all()


def test_masks_of_the_last_network_are_those_that_it_used():
    method = jp.reparam.sr_ste(1, 4)
    masks = jp.select(jp.magnitude({"kernel": W}), jp.uniform, 0.75, jp.nm(1, 4))
    used = method.apply(method.init({"kernel": W}))["kernel"]
    np.testing.assert_array_equal(used, jp.apply_masks({"kernel": W}, masks)["kernel"])


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="sr_ste: 4 of 4 prunes nothing; n is below m"):
        jp.reparam.sr_ste(4, 4)
    with pytest.raises(ValueError, match=r"keeps n of every m, with 1 <= n <= m; got nm\(5, 4\)"):
        jp.reparam.decayed_flow(5, 4, lambda t: 1.0)
    with pytest.raises(ValueError, match="strength is at least 0; got -1"):
        jp.reparam.sr_ste(2, 4, -1)
    with pytest.raises(TypeError, match="decay is a function from the step to a factor"):
        jp.reparam.decayed_flow(2, 4, 0.5)
    with pytest.raises(ValueError, match="M / N is a power of 2; got 2:6"):
        jp.reparam.stepwise_flow(2, 6, 10)
    with pytest.raises(ValueError, match="3 frames need as many steps; got 2"):
        jp.reparam.stepwise_flow(1, 4, 2)
    with pytest.raises(ValueError, match="'kernel'"):
        jp.reparam.stepwise_flow(2, 4, 9).apply(
            jp.reparam.DenseWeights({"kernel": jnp.ones((6, 2))}), step=0
        )
    with pytest.raises(ValueError, match="the last frame is 1:4; got the frames"):
        jp.reparam.stepwise_flow(1, 4, 9, frames=lambda n, m: [(1, 8), (1, 2)])
    with pytest.raises(ValueError, match="a frame is N:M with 1 <= N < M; got 4:4"):
        jp.reparam.stepwise_flow(1, 4, 9, frames=lambda n, m: [(4, 4), (1, 4)])
    with pytest.raises(ValueError, match="largest is a power of 2, such as 8; got 6"):
        _geometric(largest=6)
    with pytest.raises(ValueError, match=r"'kernel'.*axis -2 divisible by 32"):
        _geometric().init({"kernel": W})
    with pytest.raises(ValueError, match="'kernel'"):
        jp.reparam.sr_ste(2, 4).init({"kernel": jnp.ones((6, 2))})
