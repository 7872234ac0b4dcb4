"""A user's program, typed, that needs the wheel and what it brings: checked by `.ci/wheel`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp

Params = dict[str, jax.Array]
STEPS = 400


class State(NamedTuple):
    params: Params
    opt_state: optax.OptState


sparsity = optax.polynomial_schedule(0.0, 0.9, power=3, transition_steps=300, transition_begin=50)
gmp: jp.MaskTransform = jp.prune(jp.magnitude, jp.erk, sparsity)
tx: optax.GradientTransformationExtraArgs = jp.sparsify(optax.adam(3e-3), jp.every(10, gmp))


def loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["first"])
    return jnp.mean((hidden @ params["last"] - y) ** 2)


def train(params: Params, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
    def step(state: State, _: None) -> tuple[State, jax.Array]:
        error, grads = jax.value_and_grad(loss)(state.params, x, y)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), error

    return jax.lax.scan(step, State(params, tx.init(params)), length=STEPS)


def main() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (128, 32))
    y = jnp.sin(x @ jax.random.normal(keys[1], (32, 4)))
    params = {
        "first": 0.2 * jax.random.normal(keys[2], (32, 64)),
        "last": 0.2 * jax.random.normal(keys[3], (64, 4)),
    }
    state, errors = jax.jit(train)(params, x, y)
    masks = jp.get_masks(state.opt_state)
    print(jp.report(state.params, masks))
    assert abs(float(jp.sparsity(masks)) - 0.9) < 1e-3
    assert errors[-1] < errors[0]
    zeros = sum(int(jnp.sum(w == 0)) for w in jax.tree.leaves(state.params))
    assert zeros == sum(int(jnp.sum(~mask)) for mask in jax.tree.leaves(masks))


if __name__ == "__main__":
    main()
