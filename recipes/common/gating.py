"""Arms that learn gates beside their weights, until the gates become masks.

The gates of the consensus arm depend on the input, until all inputs agree on one network. A linear
map of the image decides of every neuron, straight through. A penalty on disagreement and a budget
on the mean over the batch leave one network; then the map is dropped. After Zhi et al., Learning a
Consensus Sub-Network with Polarization Regularization and One Pass Training; the penalty's form,
and the map, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.masks import all_kept
from jaxprune.programs.flops import Flops
from jaxprune.trees import named_leaves
from recipes.common.arms import Arm, Learned, Weights
from recipes.common.models import classification

BINS = 20  # of the histogram of gates
GATES, MULTIPLIERS = "gates", "multipliers"  # beside the layers of the network


class Level(NamedTuple):
    """What has a gate of its own."""

    logits: Callable[[Any], Any]  # the network's params -> logits
    gates: Callable[[Any, Any], Any]  # (gates, params) -> gates that multiply the params
    masks: Callable[[Any, Any], Any]  # (open gates, params) -> masks of weights
    kept: Callable[[Any, Any], jax.Array]  # (open or how probably, params) -> fraction of the cost
    readers: Callable[[Any], dict[str, str]] = lambda params: {}  # layer -> the neurons it reads
    static: Callable[[Any], Any] = lambda logits: logits  # what is learned -> logits of no input


class Plan(NamedTuple):
    """How gates are learned."""

    gate: Callable[[jax.Array], jp.gates.Gate]  # of a step
    above: float  # which a gate is open
    target: optax.Schedule | None  # the fraction to keep; None with a fixed penalty
    final: float | None  # the last target
    price: float | None  # of each weight that is kept, where there is no target
    harden: int  # the step at which gates become masks
    rate: float  # of the gates and the multipliers


def weights(logit: float, flops: Flops | None) -> Level:
    """A gate for each weight of a kernel; the budget is of weights, or of these FLOPs."""

    def kept(p_open: Any, params: Any) -> jax.Array:
        if flops is None:
            return jp.gates.kept_weights(p_open, jp.kernels(params))
        return jp.gates.kept_flops(p_open, flops, params)

    return Level(
        logits=lambda params: jp.gates.logits(jp.kernels(params), logit=logit),
        gates=lambda gates, params: gates,
        masks=lambda kept, params: jp.gates.masks(kept, params),
        kept=kept,
    )


def neurons(
    logit: float, flops: Flops | None, coupling: Callable[[Any], jp.coupling.Coupling]
) -> Level:
    """A gate for each neuron of a coupling; the budget is of weights, or of these FLOPs."""

    def kept(p_open: Any, params: Any) -> jax.Array:
        if flops is None:
            return jp.gates.kept_weights(p_open, jp.kernels(params), coupling(params))
        return jp.gates.kept_flops(p_open, flops, params, coupling(params))

    return Level(
        logits=lambda params: jp.gates.neuron_logits(coupling(params), params, logit),
        gates=lambda gates, params: jp.gates.neuron_gates(
            gates, coupling(params), jp.kernels(params)
        ),
        masks=lambda kept, params: jp.gates.neuron_masks(
            kept, coupling(params), jp.kernels(params)
        ),
        kept=kept,
        readers=lambda params: {
            path.rpartition("/")[0]: group
            for group, axes in coupling(params).items()
            for path, axis, *_ in axes
            if dict(named_leaves(params))[path].ndim - 2 == axis
        },
    )


def layers_in_order(params: Any) -> list[str]:
    """The layers of a network without branches: convolutions, each with its norm, then the rest."""
    number = lambda layer: int(layer.rpartition("_")[2])
    kind = lambda layer: "Dense" in layer
    return sorted(params, key=lambda layer: (kind(layer), number(layer), "Norm" in layer))


def sequential(params: Any) -> dict[str, list[jp.analysis.Axis]]:
    """The neurons of a network without branches, and its inputs where no convolution reads them."""
    layers = layers_in_order(params)
    coupling = jp.analysis.sequential_coupling(params, layers)
    first = params[layers[0]]["kernel"]
    if first.ndim == 2:
        coupling["inputs"] = [jp.analysis.Axis(f"{layers[0]}/kernel", 0)]
    return coupling


def arm(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    level: Level,
    plan: Plan,
    loss: Callable[..., Any] | None = None,
) -> Arm:
    """Trains weights under gates that learn too; at `plan.harden` gates become masks, and go."""
    learned = Learned(
        start=lambda params: {
            **params,
            GATES: level.logits(params),
            MULTIPLIERS: jp.gates.multipliers(),
        },
        loss=loss or _loss(module, level, plan),
        network=lambda params, step: _network(params, step, level, plan),
        measure=lambda params, step: _measure(params, step, level, plan),
    )
    fast = optax.adam(plan.rate, b2=0.9)  # prices change: it must forget (see jp.gates.lagrangian)
    rates = {"weights": optimizer, GATES: fast, MULTIPLIERS: fast}
    all_of = optax.partition(rates, _labels)
    masks = jp.every(1, from_gates(level, plan), start=plan.harden, stop=plan.harden)
    return Arm(module, lambda key: jp.sparsify(all_of, masks), Weights.SPARSE, learned=learned)


def from_gates(level: Level, plan: Plan) -> jp.MaskTransform:
    """Masks of weights from the logits among the params: all that the budget pays for."""

    def init(params: Any) -> jp.MaskState:
        ones = all_kept(jp.kernels(network_of(params)))
        return jp.MaskState(_beside(ones, params))

    def update(state: jp.MaskState, params: Any, **_: Any) -> jp.MaskState:
        own = network_of(params)
        kept = level.masks(choose(level.static(params[GATES]), own, level, plan), own)
        return jp.MaskState(_beside(kept, params))

    return jp.MaskTransform(init, update)


def choose(logits: Any, params: Any, level: Level, plan: Plan) -> Any:
    """The gates that stay open."""
    scores = jp.gates.keep_at_least(logits, 1)
    if plan.final is None:
        gates = plan.gate(jnp.asarray(plan.harden)).deterministic(logits)
        return jax.tree.map(lambda g, s: (g > plan.above) | (s == jnp.inf), gates, scores)
    return jp.gates.within_budget(scores, lambda kept: level.kept(kept, params), plan.final)


def architectures(masks: Any) -> list[str]:
    """How many inputs of each kernel are read, "219-214-100", for each seed of a stack of masks."""
    own = network_of(masks)
    layers = [layer for layer in own if own[layer].get("kernel") is not None]
    read = []
    for layer in layers_in_order(layers):
        mask = np.asarray(own[layer]["kernel"])
        others = tuple(axis for axis in range(1, mask.ndim) if axis != mask.ndim - 2)
        read.append(mask.any(others).sum(1))
    return ["-".join(str(n) for n in each) for each in np.transpose(read)]


def network_of(params: Any) -> dict[str, Any]:
    """The params of the network, without what is learned beside them."""
    return {layer: own for layer, own in params.items() if layer not in (GATES, MULTIPLIERS)}


def _loss(module: nn.Module, level: Level, plan: Plan) -> Callable[..., Any]:
    cross_entropy = classification(module)

    def loss_fn(params, batch_stats, images, labels, step, key):
        own, logits = network_of(params), params[GATES]
        gate, gating = plan.gate(step), step <= plan.harden
        used = _gated(own, gate.sample(key, logits), gating, level)
        loss, aux = cross_entropy(used, batch_stats, images, labels)
        return loss + jnp.where(gating, _price(params, step, level, plan), 0.0), aux

    return loss_fn


def _price(params: Any, step: jax.Array, level: Level, plan: Plan) -> jax.Array:
    kept = level.kept(plan.gate(step).p_open(params[GATES]), network_of(params))
    if plan.target is None:
        total = sum(w.size for w in jax.tree.leaves(jp.kernels(network_of(params))))
        return plan.price * total * kept
    return jp.gates.lagrangian(params[MULTIPLIERS], kept, plan.target(step))


def _gated(own: Any, gates: Any, gating: jax.Array, level: Level) -> Any:
    """The network under its gates, as long as there are any."""
    spread = level.gates(jax.tree.map(lambda g: jnp.where(gating, g, 1.0), gates), own)
    return jp.apply_masks(own, spread)


def _network(params: Any, step: jax.Array, level: Level, plan: Plan) -> Any:
    own = network_of(params)
    gates = plan.gate(step).deterministic(level.static(params[GATES]))
    return _gated(own, gates, step <= plan.harden, level)


def _measure(params: Any, step: jax.Array, level: Level, plan: Plan) -> dict[str, jax.Array]:
    """Numbers of one seed: the fraction kept, expected and at a threshold; a histogram."""
    gate, own = plan.gate(step), network_of(params)
    logits = level.static(params[GATES])
    gates, p_open = gate.deterministic(logits), gate.p_open(logits)
    values = jnp.concatenate([g.ravel() for g in jax.tree.leaves(gates)])
    counts = jnp.histogram(values, bins=BINS, range=(0.0, 1.0))[0]
    return {
        "expected": level.kept(p_open, own),
        "open": level.kept(jp.gates.threshold(gates, plan.above), own),
        "multiplier": params[MULTIPLIERS].linear,
        "histogram": counts / values.size,
    }


def _labels(params: Mapping[str, Any]) -> dict[str, str]:
    return {part: part if part in (GATES, MULTIPLIERS) else "weights" for part in params}


def _beside(masks: Any, params: Any) -> Any:
    """Masks of the network as masks of all that is learned: None elsewhere."""
    nothing = jax.tree.map(lambda _: None, {k: params[k] for k in (GATES, MULTIPLIERS)})
    return {**masks, **nothing}


EXAMPLES = 256  # on which the vote is taken, in tests and for the masks
STRENGTH = 1.0  # of the penalty on disagreement


def consensus_arm(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    neurons: Level,
    plan: Plan,
    images: np.ndarray,
) -> Arm:
    """`neurons` says what is gated; `images` vote for the network that is tested and kept."""
    voters = jnp.asarray(images[:EXAMPLES])

    def logits(params: Any) -> Any:
        pixels = images[0].size
        maps = lambda s: {"kernel": jnp.zeros((pixels, s.size)), "bias": s}
        return {group: maps(s) for group, s in neurons.logits(params).items()}

    def votes(maps: Any) -> Any:
        """Of each neuron, how much more than half of the images want it open."""
        means = jp.gates.consensus(decisions(maps, voters))
        return jax.tree.map(lambda m: m - 0.5, means)

    level = neurons._replace(logits=logits, static=votes)
    return arm(module, optimizer, level, plan, _consensus_loss(module, neurons, plan))


def consensus_gate() -> jp.gates.Gate:
    """Of votes: open if most are for it; how probably, by their share."""
    share = lambda votes: jax.tree.map(lambda v: v + 0.5, votes)
    return jp.gates.straight_through()._replace(p_open=share)


def decisions(maps: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Binary gates of each image: {group: (images, neurons)}."""
    x = images.reshape(len(images), -1)
    logits = {group: x @ own["kernel"] + own["bias"][None] for group, own in maps.items()}
    return jp.gates.straight_through().sample(None, logits)


def _consensus_loss(module: nn.Module, neurons: Level, plan: Plan) -> Callable[..., Any]:
    cross_entropy, target = classification(module), plan.target
    assert target is not None

    def loss_fn(params, batch_stats, images, labels, step, key):
        own, gating_now = network_of(params), step <= plan.harden
        gates = decisions(params[GATES], images)
        kept = neurons.kept(jp.gates.consensus(gates), own)
        price = STRENGTH * jp.gates.disagreement(gates)
        price += jp.gates.lagrangian(params[MULTIPLIERS], kept, target(step))
        multiplied = jax.tree.map(lambda g: jnp.where(gating_now, g, 1.0), gates)
        with nn.intercept_methods(_multiply(multiplied, neurons.readers(own))):
            loss, aux = cross_entropy(own, batch_stats, images, labels)
        return loss + jnp.where(gating_now, price, 0.0), aux

    return loss_fn


def _multiply(gates: dict[str, jax.Array], readers: dict[str, str]) -> Any:
    """Multiplies what a layer reads by the gates of its group, each example's by its own."""

    def interceptor(call, args, kwargs, context):
        group = readers.get(context.module.name or "")
        if group is None or context.method_name != "__call__":
            return call(*args, **kwargs)
        x, *rest = args
        own = gates[group].reshape(len(x), *(1,) * (x.ndim - 2), -1)
        return call(x * own.astype(x.dtype), *rest, **kwargs)

    return interceptor
