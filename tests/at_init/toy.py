"""A linear network of six weights, worked by hand; and one of ReLUs, with biases."""

import jax
import jax.numpy as jnp
import numpy as np

# two inputs, two hidden units, one output; weights (out, in)
W = {"first": jnp.array([[1.0, -0.5], [0.3, 0.8]]), "last": jnp.array([[0.6, -0.4]])}
X, Y = jnp.array([[1.0, 2.0], [-1.0, 0.5]]), jnp.array([1.0, 0.0])


def forward(params, x):
    return (x @ params["first"].T @ params["last"].T)[:, 0]


def loss(params):
    return jnp.mean(0.5 * (forward(params, X) - Y) ** 2)


def ones(params):
    return forward(params, jnp.ones((1, 2)))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def kept(masks):
    return np.flatnonzero(flat(masks)).tolist()


# --- three layers of ReLUs -----------------------------------------------------------------------

SIZES = (12, 16, 8, 4)
WEIGHTS = 12 * 16 + 16 * 8 + 8 * 4


def mlp_params(key, dtype=jnp.float32):
    keys = jax.random.split(key, 3)
    draw = lambda k, a, b: (jax.random.normal(k, (a, b)) / a**0.5).astype(dtype)
    layers = zip(keys, SIZES[:-1], SIZES[1:], strict=True)
    return {
        f"Dense_{i}": {"kernel": draw(k, a, b), "bias": jnp.zeros(b, dtype)}
        for i, (k, a, b) in enumerate(layers)
    }


def mlp(params, x):
    for i in range(3):
        layer = params[f"Dense_{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"][None]
    return x


IMAGES = jax.random.normal(jax.random.key(7), (20, 12))
LABELS = jnp.arange(20) % 4


def mlp_loss(params):
    logits = mlp(params, IMAGES.astype(params["Dense_0"]["kernel"].dtype))
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), LABELS[:, None], 1))


def mlp_ones(params):
    return mlp(params, jnp.ones((1, 12), params["Dense_0"]["kernel"].dtype))
