"""The mean of a loss over batches: that of all examples, one batch in memory, one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.analysis import hvp, over_batches
from tests.analysis.test_hessian import data as data
from tests.analysis.test_hessian import flat, of_batch, raised


@pytest.mark.full
@pytest.mark.parametrize("unroll", [False, True])
def test_over_batches_is_the_loss_of_all_examples(data, params, grads, unroll):
    at_once = lambda p: of_batch(p, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), data))
    loss = over_batches(of_batch, data, unroll)
    np.testing.assert_allclose(loss(params), at_once(params), rtol=1e-5)
    for f in (lambda loss: jax.grad(loss)(params), lambda loss: hvp(loss, params, grads)):
        np.testing.assert_allclose(flat(f(loss)), flat(f(at_once)), rtol=1e-4, atol=1e-6)


def test_over_batches_of_several_numbers(data, params):
    both = over_batches(lambda p, b: {"loss": of_batch(p, b), "zero": jnp.zeros(())}, data)
    assert set(both(params)) == {"loss", "zero"}


def test_over_batches_holds_one_batch_in_memory():
    x, params = jnp.ones((32, 64, 32)), (jnp.ones((32, 256)), jnp.ones((256, 32)))

    def loss(w, x):
        return jnp.mean(jnp.sin(jnp.sin(x @ w[0]) @ w[1]))

    def temporary(loss):  # an argument: what is closed over would be a constant of the program
        product = jax.jit(lambda loss, w, v: hvp(loss, w, v))
        compiled = product.lower(loss, params, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    at_once = temporary(jax.tree_util.Partial(lambda x, w: loss(w, x.reshape(-1, 32)), x))
    assert temporary(over_batches(loss, x)) < at_once / 10


def test_other_batches_need_no_new_program(params, grads, data):
    traced = []

    def counted(p, batch):
        traced.append(1)
        return of_batch(p, batch)

    hvp(over_batches(counted, data), params, grads)
    first = len(traced)
    hvp(over_batches(counted, jax.tree.map(lambda x: x + 1, data)), params, grads)
    assert len(traced) == first


def test_batches_of_different_number():
    for batches in ((jnp.ones((2, 3)), jnp.ones(3)), jnp.ones(()), jnp.ones((0, 2)), ()):
        said = raised(lambda batches=batches: over_batches(of_batch, batches))
        assert "all with the same number of batches" in said and "x.reshape(n, b" in said
