"""Adapters: the worked numbers, where kernels have more axes than two, and what can't be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp

KEY = jax.random.key(0)
# the example of a kernel (outputs, inputs), here (inputs, outputs)
KERNEL = jnp.array([[0.5, 0, -0.3], [0, 0.8, 0.2]]).T
DOWN, UP = jnp.array([[0.1, -0.2, 0.3]]).T, jnp.array([[1, 0.5]])
X = jnp.array([[1.0, 2, -1]])


def merged(method, kernel=KERNEL, down=DOWN, up=UP):
    learned = method.init({"kernel": kernel})
    learned = learned._replace(down={"kernel": down}, up={"kernel": up})
    return method.apply(learned)["kernel"]


def test_the_worked_example():
    plain = merged(jp.reparam.lora(KEY, rank=1, alpha=2))
    np.testing.assert_allclose(plain.T, [[0.7, -0.4, 0.3], [0.1, 0.6, 0.5]], atol=1e-6)
    masked = merged(jp.reparam.masked_lora(KEY, rank=1, alpha=2))
    np.testing.assert_allclose(masked.T, [[0.7, 0, 0.3], [0, 0.6, 0.5]], atol=1e-6)
    np.testing.assert_allclose(X @ masked, [[0.4, 0.7]], atol=1e-6)
    np.testing.assert_allclose(X @ plain, [[-0.4, 0.8]], atol=1e-6)


def test_alpha_is_divided_by_the_rank():
    two = merged(jp.reparam.lora(KEY, 2, 4.0), down=jnp.tile(DOWN, 2) / 2, up=jnp.tile(UP, (2, 1)))
    np.testing.assert_allclose(two, merged(jp.reparam.lora(KEY, 1, 2.0)), atol=1e-6)


def test_a_scale_multiplies_each_weight():
    up = jnp.array([[2.0, 3.0]])
    made = merged(jp.reparam.scaled_lora(1), down=jnp.ones((3, 1)), up=up)
    np.testing.assert_allclose(made, KERNEL * up)


@pytest.mark.parametrize(
    ("name", "shape", "inputs", "outputs"),
    [
        ("Conv_0", (3, 2, 4, 5), 24, 5),
        ("query", (6, 2, 3), 6, 6),
        ("out", (2, 3, 7), 6, 7),
    ],
)
def test_windows_and_heads_are_part_of_a_matrix(name, shape, inputs, outputs):
    params = {name: {"kernel": jax.random.normal(KEY, shape)}}
    method = jp.reparam.lora(KEY, rank=2)
    learned = method.init(params)
    assert learned.down[name]["kernel"].shape == (inputs, 2)
    assert learned.up[name]["kernel"].shape == (2, outputs)
    learned = learned._replace(up=jax.tree.map(jnp.ones_like, learned.up))
    change = method.apply(learned)[name]["kernel"] - params[name]["kernel"]
    matrix = change.reshape(inputs, outputs)
    np.testing.assert_allclose(
        matrix, 16 * learned.down[name]["kernel"] @ jnp.ones((2, outputs)), atol=1e-5
    )


def test_each_kernel_has_a_draw_of_its_own():
    params = {"a": {"kernel": jnp.ones((4, 4))}, "b": {"kernel": jnp.ones((4, 4))}}
    down = jp.reparam.lora(KEY, rank=1).init(params).down
    assert (down["a"]["kernel"] != down["b"]["kernel"]).all()
    assert (jnp.abs(down["a"]["kernel"]) <= 0.5).all()


def test_what_is_learned_is_less():
    params = {"kernel": jnp.ones((4096, 4096))}
    learned = jax.eval_shape(jp.reparam.masked_lora(KEY).init, params)
    assert jp.reparam.size_of((learned.down, learned.up)).numbers == 131_072


def test_doped_kernels_learn_under_masks_and_cost_as_much_as_dense_ones():
    params = {"a": {"kernel": jax.random.normal(KEY, (40, 20))}, "bias": jnp.ones(3)}
    method = jp.reparam.doped(KEY, 0.75)
    learned = method.init(params)
    assert learned.down["a"]["kernel"].shape == (40, 10)  # 0.75 * 800 / 60
    tx = jp.sparsify(
        optax.adam(0.1), jp.static(KEY, 0.75, jp.uniform, jp.matching("weights/*kernel"))
    )
    state = tx.init(learned)
    loss = lambda learned: jnp.sum((method.apply(learned)["a"]["kernel"] - 1) ** 2)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(learned), state, learned)
        learned = optax.apply_updates(learned, updates)
    kernel, mask = learned.weights["a"]["kernel"], jp.get_masks(state).weights["a"]["kernel"]
    assert (kernel != params["a"]["kernel"]).all() and not kernel[~mask].any()
    assert int(mask.sum()) + jp.reparam.size_of((learned.down, learned.up)).numbers == 800
    assert method.apply(learned)["a"]["kernel"].all()


def test_ranks_that_cannot_be_are_told():
    for rank in (0, 2.0, True):
        with pytest.raises(ValueError, match="lora: rank is a whole number, at least 1"):
            jp.reparam.lora(KEY, rank)
    with pytest.raises(
        ValueError, match="rank 3 is above that of 'kernel', which has 3 inputs and 2"
    ):
        jp.reparam.scaled_lora(3).init({"kernel": KERNEL})
    with pytest.raises(ValueError, match="rank of 'kernel' would be 0: it has 3 inputs and 2"):
        jp.reparam.doped(KEY, 0.5).init({"kernel": KERNEL})
    with pytest.raises(ValueError, match="masked_lora needs to know which axes of 'x/kernel'"):
        jp.reparam.masked_lora(KEY, 1).init({"x": {"kernel": jnp.ones((2, 3, 4))}})
