"""What pruning at initialisation is given: paths without norms, and the weights on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes.common import at_init, models


@pytest.mark.parametrize("norm", models.NORMS)
def test_flow_is_conserved_through_convolutions_whatever_the_norm(norm):
    module = models.model("conv", 10, norm, width=0.25)
    params = module.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))["params"]
    shares = jax.jit(lambda p: jp.flow_shares(at_init.flow(module, (8, 8, 1)), p))(params)
    sums = [float(share.sum()) for share in jax.tree.leaves(shares)]
    np.testing.assert_allclose(sums, 1, rtol=1e-4)


def test_weights_on_paths_by_hand():
    # two inputs, three hidden units, two outputs
    module = models.MLP((3,), 2)
    masks = {
        "Dense_0": {"kernel": jnp.array([[1, 0, 0], [0, 1, 0]], bool), "bias": None},
        "Dense_1": {"kernel": jnp.array([[1, 1], [0, 0], [0, 1]], bool), "bias": None},
    }
    params = module.init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    params = jax.tree.map(lambda x: x + 1.0, params)  # a bias that reaches the output is no path
    nothing = jax.tree.map(lambda m: m & False, masks)
    stack = jax.tree.map(lambda *xs: jnp.stack(xs), masks, nothing)
    both = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    # of the first layer the weight of unit 0; of the last the two that leave it
    found = at_init.weights_on_paths(at_init.flow(module, (2,)), both, stack)
    assert found.tolist() == [3, 0]
