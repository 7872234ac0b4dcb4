"""The nine lines, as users write them: a linen loop and an nnx loop, plain optax throughout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp

x = jax.random.normal(jax.random.key(0), (32, 8))
KERNEL_WEIGHTS = 8 * 64 + 64 * 4
PRUNED = 614  # round(0.8 * 768)
y = jnp.argmax(x @ jax.random.normal(jax.random.key(1), (8, 4)), axis=-1)


def gmp():
    schedule = optax.polynomial_schedule(0.0, 0.8, power=3, transition_steps=30, transition_begin=5)
    return jp.sparsify(optax.adam(3e-3), jp.every(5, jp.prune(jp.magnitude, jp.erk, schedule)))


def cross_entropy(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def test_linen_loop_reaches_the_target_and_learns():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(nn.LayerNorm()(nn.relu(nn.Dense(64)(x))))

    model, tx = Net(), gmp()
    variables = model.init(jax.random.key(2), x)
    state = tx.init(variables)

    @jax.jit
    def step(variables, state):
        loss, grads = jax.value_and_grad(lambda v: cross_entropy(model.apply(v, x)))(variables)
        updates, state = tx.update(grads, state, variables)
        return optax.apply_updates(variables, updates), state, loss

    losses = []
    for _ in range(200):
        variables, state, loss = step(variables, state)
        losses.append(float(loss))
    masks = jp.get_masks(state)
    assert losses[-1] < 0.4 * losses[0]
    assert float(jp.sparsity(masks)) == np.float32(PRUNED / KERNEL_WEIGHTS)
    assert masks["params"]["LayerNorm_0"]["scale"] is None
    kernel, mask = variables["params"]["Dense_0"]["kernel"], masks["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[~mask], 0.0)
    assert (kernel[mask] != 0).all()


@pytest.mark.full
def test_nnx_loop_reaches_the_target_and_learns():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 64, rngs=rngs)
            self.norm = nnx.LayerNorm(64, rngs=rngs)
            self.out = nnx.Linear(64, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(self.norm(nnx.relu(self.hidden(x))))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, gmp(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(x)))(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(200)]
    assert losses[-1] < 0.4 * losses[0]
    for state in (optimizer, optimizer.opt_state, nnx.state(optimizer)):
        masks = jp.get_masks(state)
        assert float(jp.sparsity(masks)) == np.float32(PRUNED / KERNEL_WEIGHTS)
    params = nnx.state(model, nnx.Param)
    again = jp.apply_masks(params, masks)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    assert float((model.hidden.kernel[...] == 0).mean()) > 0.6
