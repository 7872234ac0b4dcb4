"""Stacks of networks whose neurons are masked: trained, scored, pruned.

Arms are lanes of one program beside their seeds. Masks are data, so that every round of pruning and
training on runs what the first one compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from jaxprune.coupling.structure import Structure
from recipes.common import phases, training
from recipes.common.errors import RecipeError
from recipes.common.journal import Journal
from recipes.common.neuron_scores import Scored
from recipes.common.phases import At, Lane, Phases
from recipes.common.training import TrainState


class Networks(NamedTuple):
    """A stack: arms after each other, the seeds of each side by side."""

    variables: dict[str, Any]
    kept: dict[str, jax.Array]  # {group: bool (networks, size)}


class Study(NamedTuple):
    """What all rounds share."""

    network: Mapping[str, Any]  # what `models.model` was called with
    module: nn.Module
    structure: Structure
    program: Phases
    masks: Callable[[Any], Any]  # the kept neurons of a stack -> masks of its params
    keys: jax.Array  # (seeds,)
    scores: Mapping[str, Scored]
    allocation: Any
    round_to: int
    targets: Sequence[float]  # of FLOPs, falling
    shares: Sequence[float]  # the share of the FLOPs after each round; the targets are among them
    steps: int  # of training
    more: int  # and of each round
    rates: Lane  # of training, of one network
    more_rates: Lane


def masks_of(structure: Structure) -> Callable[[Any], Any]:
    """The kept neurons of a stack -> masks of its params."""
    return jax.jit(jax.vmap(lambda kept: jp.group_masks(structure, kept)["params"]))


def untrained(s: Study) -> Networks:
    """A network for each seed, with the weights of all recipes."""
    image = jnp.asarray(s.program.train.images[:1])
    variables = training.init_variables(s.module, s.keys, image)
    kept = {
        name: jnp.ones((len(s.keys), own.size), bool) for name, own in s.structure.groups.items()
    }
    return Networks(dict(variables), kept)


def copies(s: Study, networks: Networks) -> Networks:
    """The same networks for each arm: dense, and a score each."""
    arms = 1 + len(s.scores)
    return jax.tree.map(lambda x: jnp.tile(x, (arms, *(1,) * (x.ndim - 1))), networks)


def parts(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """(params, batch_stats)."""
    return variables["params"], variables.get("batch_stats", {})


def train(
    s: Study, networks: Networks, lane: Lane, steps: int, first: int, name: str, journal: Journal
) -> Networks:
    """Trains all networks for so many steps, from step `first` of the order of the examples on."""
    params, batch_stats = parts(networks.variables)
    lanes = len(jax.tree.leaves(params)[0])
    own = jax.tree.map(lambda x: jnp.tile(x, (lanes, *(1,) * x.ndim)), lane)
    keys = jnp.tile(s.keys, lanes // len(s.keys))
    state = phases.begin(s.program, params, batch_stats, s.masks(networks.kept), own)

    def advance(state: TrainState, start: int, at: At) -> TrainState:
        return phases.advance(s.program, state, own, keys, steps, at, start, first)

    state = journal.once(name, steps, state, advance, f"{lanes} networks")
    statistics = {"batch_stats": state.batch_stats} if state.batch_stats else {}
    return networks._replace(variables={"params": state.params, **statistics})


def pruned(s: Study, networks: Networks, share: float, index: int) -> Networks:
    """Each score's networks without their lowest neurons; the first arm, of no score, as it is.

    Raises `RecipeError` if the share of the FLOPs can't be met.
    """
    n = len(s.keys)
    kept = {group: [own[:n]] for group, own in networks.kept.items()}
    keys = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, 4), index))(s.keys)
    for i, score in enumerate(s.scores.values(), 1):
        mine = of_arm(s, networks, i)
        scores = score(mine.variables, mine.kept, keys)
        chosen = [_pick(s, share, *training.seed_of((scores, mine.kept), k)) for k in range(n)]
        for group in kept:
            kept[group].append(jnp.stack([own[group] for own in chosen]))
    joined = {group: jnp.concatenate(arms) for group, arms in kept.items()}
    params = jp.apply_masks(networks.variables["params"], s.masks(joined))
    return Networks(networks.variables | {"params": params}, joined)


def of_arm(s: Study, networks: Networks, arm: int) -> Networks:
    """The networks of one arm."""
    n = len(s.keys)
    return jax.tree.map(lambda x: x[arm * n : (arm + 1) * n], networks)


def known(kept: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The kept neurons of one network as numpy arrays."""
    return {name: np.asarray(own) for name, own in kept.items()}


def check_budget(s: Study) -> None:
    """Raises `RecipeError` if the networks can't be as small as the last target asks."""
    alike = {name: np.ones(own.size, np.float32) for name, own in s.structure.groups.items()}
    _pick(s, min(s.targets), alike, {name: own > 0 for name, own in alike.items()})


def _pick(s: Study, share: float, scores: Any, before: Any) -> dict[str, Any]:
    try:
        kept = jp.pick(s.structure, scores, None, s.allocation, flops=share, round_to=s.round_to)
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error
    return {group: own & before[group] for group, own in kept.items()}  # what is gone stays gone
