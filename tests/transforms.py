"""What the contract and the golden tests share: tiny params and every mask transform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp

STEPS = 7  # updates of the masks fall on steps 0, 2, 4 and 6


def tiny_params(dtype=jnp.float32):
    """Two kernels of 16 x 24 and 24 x 8, two biases, a scalar, and a leaf that is absent."""
    draw = np.random.default_rng(0).standard_normal
    return {
        "Dense_0": {
            "kernel": jnp.asarray(draw((16, 24)), dtype),
            "bias": jnp.asarray(draw(24), dtype),
        },
        "Dense_1": {"kernel": jnp.asarray(draw((24, 8)), dtype), "bias": None},
        "temperature": jnp.asarray(1.0, dtype),
    }


def loss(params):
    """A quadratic with a different slope and curvature at every weight."""
    leaves = jax.tree.leaves(params)
    centers = [
        jnp.sin(1.0 + jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape) for w in leaves
    ]
    return sum(
        jnp.sum((1.5 + c) * (w.astype(jnp.float32) - c) ** 2)
        for w, c in zip(leaves, centers, strict=True)
    )


def ramp():
    return optax.polynomial_schedule(0.2, 0.8, power=3, transition_steps=STEPS - 1)


def fading():
    return optax.cosine_decay_schedule(0.4, 2 * STEPS)


def ticket(params):
    return jp.select(jp.random(jax.random.key(3))(jp.kernels(params)), jp.erk, 0.7)


def neurons(params):
    """What shares a neuron in the network that these are the params of."""

    def network(p, x):
        return jnp.tanh(x @ p["Dense_0"]["kernel"]) @ p["Dense_1"]["kernel"] * p["temperature"]

    return jp.analyze(network, params, jax.ShapeDtypeStruct((1, 16), params["temperature"].dtype))


def rewound(params, transform):
    """A transform that is told of the weights at a rewind step, as by `tickets.next_phase`."""
    early = jax.tree.map(lambda w: 0.5 * w + 0.1, params)
    return transform._replace(update=functools.partial(transform.update, rewind_to=early))


# name -> params -> mask transform
TRANSFORMS = {
    "gradual_uniform": lambda p: jp.every(2, jp.prune(jp.magnitude, jp.uniform, ramp())),
    "gradual_global": lambda p: jp.every(2, jp.prune(jp.magnitude, jp.global_threshold, ramp())),
    "one_shot_saliency_erk": lambda p: jp.prune(jp.saliency, jp.erk, 0.7),
    "gradual_gradient_er": lambda p: jp.every(2, jp.prune(jp.gradient, jp.er, ramp())),
    "random": lambda p: jp.every(2, jp.prune(jp.random(jax.random.key(1)), jp.uniform, ramp())),
    "lamp": lambda p: jp.every(2, jp.prune(jp.lamp(), jp.global_threshold, ramp())),
    "two_of_four": lambda p: jp.every(
        2, jp.prune(jp.magnitude, jp.uniform, 0.5, jp.nm(2, 4)), start=2
    ),
    "blocks": lambda p: jp.every(2, jp.prune(jp.magnitude, jp.uniform, ramp(), jp.block(3, 4))),
    "balanced_blocks": lambda p: jp.every(
        2, jp.prune(jp.magnitude, jp.uniform, ramp(), jp.block(4, 4, balanced=True))
    ),
    "rigl_in_blocks": lambda p: jp.fast.in_blocks(
        4,
        4,
        jp.every(2, jp.rigl(jax.random.key(6), 0.7, fading(), jp.uniform, jp.fast.by_outputs)),
    ),
    "channels": lambda p: jp.every(2, jp.prune(jp.magnitude, jp.uniform, ramp(), jp.channel())),
    "neurons": lambda p: jp.every(
        2, jp.structured.prune(neurons(p), jp.structured.per_group(neurons(p)), sparsity=ramp())
    ),
    "stops_early": lambda p: jp.every(
        3, jp.prune(jp.magnitude, jp.global_threshold, ramp()), start=1, stop=5
    ),
    "fixed": lambda p: jp.fixed(ticket(p)),
    "fixed_then_pruned": lambda p: jp.chain(
        jp.fixed(ticket(p)),
        jp.every(2, jp.prune(jp.magnitude, jp.global_threshold, lambda step: 0.8 + 0.0 * step)),
    ),
    "static_borrowed": lambda p: jp.static(
        jax.random.key(4), 0.7, jp.allocation.like(jp.magnitude(jp.kernels(p)))
    ),
    "sap": lambda p: jp.every(2, jp.sap(1, 2)),
    "ap": lambda p: jp.every(2, rewound(p, jp.tickets.ap(ramp(), 0.5))),
    "set": lambda p: jp.every(2, jp.set(jax.random.key(5), 0.7, fading())),
    "set_two_sided": lambda p: jp.every(2, jp.set(jax.random.key(5), 0.7, 0.3, two_sided=True)),
    "rigl": lambda p: jp.every(2, jp.rigl(jax.random.key(6), 0.7, fading(), jp.uniform), stop=5),
    "rigl_itop": lambda p: jp.every(2, jp.itop(jp.rigl(jax.random.key(6), 0.7))),
    "granet": lambda p: jp.every(2, jp.granet(jax.random.key(7), ramp())),
    "granet_dense_start": lambda p: jp.every(
        2,
        jp.granet(jax.random.key(7), optax.polynomial_schedule(0.0, 0.8, 3, STEPS - 1), fading()),
    ),
}

# name -> (params, optimizer) -> optimizer: the weights stay dense, the network is masked
DENSE_WEIGHTS = {
    "dpf": lambda p, inner: jp.keep_dense(inner, jp.every(2, jp.dpf(ramp()))),
    "dpf_one_of_four": lambda p, inner: jp.keep_dense(inner, jp.dpf(0.75, jp.uniform, jp.nm(1, 4))),
    "top_kast": lambda p, inner: jp.train_only(
        optax.chain(jp.dynamic.top_kast_decay(0.5), inner), jp.every(2, jp.top_kast(0.8, 0.5))
    ),
    "bip": lambda p, inner: jp.train_only(
        inner, jp.every(2, jp.bip(0.7, optax.sgd(0.5, 0.9)), start=2)
    ),
    "freeze_fixed": lambda p, inner: jp.train_only(inner, jp.fixed(ticket(p))),
}
