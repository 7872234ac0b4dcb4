"""What is known of f(0): it is left out where it is zero, and computed where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from tests.coupling.test_analyze import weights

X = jax.random.normal(jax.random.key(0), (2, 4))
PARAMS = weights(gone=(4, 6), left=(4, 6))


@jax.custom_vjp
def halved(x, y):
    return (x + y) / 2


halved.defvjp(lambda x, y: (halved(x, y), None), lambda _, g: (g, g))

# f of a zero array h, and of y, which is not: what vanishes, and what does not
ZERO = {
    "odd": lambda h, y: jnp.sin(h) + jnp.tanh(-h) + jax.lax.erf(h) + jnp.sign(h),
    "squares": lambda h, y: h**2 + jnp.square(h) + jnp.abs(h) + jnp.sqrt(h),
    "products": lambda h, y: h * y + y * h + h / (1 + y**2) + y @ (h.T @ h),
    "relu and friends": lambda h, y: jax.nn.relu(h) + jax.nn.relu6(h) + jax.nn.leaky_relu(h),
    "smooth": lambda h, y: jax.nn.silu(h) + jax.nn.gelu(h) + jnp.expm1(h) + jnp.log1p(h),
    "clipped": lambda h, y: jnp.clip(h, -1, 2) + jnp.minimum(h, 3.0) + jnp.maximum(h, -1.0),
    "moved": lambda h, y: h.reshape(3, 4).T.reshape(2, 6)[:, ::-1] + jnp.roll(h, 1, 1),
    "cut and joined": lambda h, y: jnp.hstack([h[:, 2:], h[:, :2]]) + jnp.pad(h, 1)[1:3, 1:7],
    "reduced": lambda h, y: h.max(1, keepdims=True) + h.mean(0, keepdims=True) + h.min() + h.prod(),
    "running": lambda h, y: jnp.cumsum(h, 1) + lax.cummax(h, 1) + jnp.sort(h, 1),
    "chosen": lambda h, y: jnp.where(y > 0, h, 0.0) + h[:, jnp.array([0, 0, 1, 2, 1, 3])],
    "pooled": lambda h, y: lax.reduce_window(h, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME"),
    "cast": lambda h, y: h.astype(jnp.bfloat16).astype(h.dtype) + lax.stop_gradient(h),
    "in a loop": lambda h, y: lax.fori_loop(0, 3, lambda i, h: jnp.sin(h) * y, h),
}  # fmt: skip
NOT = {
    "cos": lambda h, y: jnp.cos(h),
    "exp": lambda h, y: jnp.exp(h),
    "sigmoid": lambda h, y: jax.nn.sigmoid(h),
    "softmax": lambda h, y: jax.nn.softmax(h, 1),
    "softplus": lambda h, y: jax.nn.softplus(h),
    "max with one": lambda h, y: jnp.maximum(h, 1.0),
    "clipped above zero": lambda h, y: jnp.clip(h, 1, 2),
    "sum with y": lambda h, y: h - y,
    "y - h": lambda h, y: y - h,
    "power of zero": lambda h, y: (h + 1) ** 2 - h**0,
    "padded with ones": lambda h, y: jnp.pad(h, 1, constant_values=1.0)[:2, :6],
    "compared": lambda h, y: (h >= 0) * y,
    "chosen": lambda h, y: jnp.where(h > 0, h, y),
    "largest place": lambda h, y: y + h.argmax(1)[:, None],
    "a derivative of its own": lambda h, y: halved(h, y),
    "in a loop": lambda h, y: lax.fori_loop(0, 3, lambda i, h: h + y, h),
}


def network(f):
    return lambda p, x: (x @ p["left"] + f(x @ p["gone"], x @ p["left"])).sum(0)


@pytest.mark.parametrize("vanishes", [True, False])
def test_f_of_zero(vanishes):
    """All in one program: compiling is what costs."""
    fs = ZERO if vanishes else NOT
    kept = {name: jp.analyze(network(f), PARAMS, X) for name, f in fs.items()}
    removals = {
        name: jp.structured.remove_blocks(structure, ["gone"]) for name, structure in kept.items()
    }
    small = {name: jp.compact(kept[name], PARAMS, removals[name]) for name in fs}
    masked = {**PARAMS, "gone": jnp.zeros_like(PARAMS["gone"])}

    def both(masked, left):
        of_small = {name: own.fn({"gone": None, "left": left}, X) for name, own in small.items()}
        return of_small, {name: network(f)(masked, X) for name, f in fs.items()}

    compacted, wanted = jax.jit(both)(masked, PARAMS["left"])
    for name in fs:
        assert removals[name].removed == ("gone",)
        np.testing.assert_allclose(compacted[name], wanted[name], rtol=1e-5, err_msg=name)
        jaxpr = jax.make_jaxpr(small[name].fn)(small[name].params, X).jaxpr
        assert (len(jaxpr.eqns) <= 2) == vanishes, (name, jaxpr)
