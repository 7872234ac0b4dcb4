"""Soups during gradual pruning: `python -m recipes.gmp_soup --help`.

Children of each seed train in parallel while gradual magnitude pruning prunes them. At each prune
the children are averaged, and the average is pruned: it is where all of them go on from (soup).
Beside them go children that are never averaged (alone), and children that train dense, are averaged
at the last prune alone, and are pruned there at once (dense soup). The moments of the optimizer are
averaged too. Writes a folder that reproduces itself. Test data choose nothing: every number is of
the last step, or of a prune.

References: Zimmer et al., 2024, Sparse Model Soups: A Recipe for Improved Pruning via Model
Averaging, whose soups retrain after pruning; Zhu and Gupta, 2017, To prune, or not to prune.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import cli, data, dead, flags, lanes, measures, settings
from recipes.common.data import Dataset, Key
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Lane, State
from recipes.common.report import kept_weights
from recipes.reports import gmp_soup as report
from recipes.reports.gmp_soup import ALONE, ARMS, DENSE, SOUP

VARIATIONS = ("order", "init")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Children of gradual pruning that are averaged at the prunes, several seeds in one program."""

    out: Path = Path("runs/gmp_soup")
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned after the last prune."""
    prunes: flags.Count = 8
    """The number of prunes; sparsities follow the cubic of gradual pruning."""
    begin: flags.Fraction = 0.2
    """The first prune, as a fraction of the steps."""
    end: Annotated[float, flags.within("(begin, 1)")] = 0.7
    """The last prune, as a fraction of the steps."""
    children: Annotated[int, flags.at_least(2)] = 3
    """The number of children of each seed."""
    vary: Annotated[str, flags.choice(VARIATIONS)] = "order"
    """How children differ: the order of the data; or also the first weights, up to the first
    average."""
    seeds: settings.Seeds = 3
    """The number of families, each with other first weights."""
    schedule: Annotated[str, flags.choice(settings.SCHEDULES)] = "cosine"
    """The learning rate over time; cosine falls to zero, drops to a tenth at 1/2 and at 3/4."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested at the prunes
    keep_best: Annotated[bool, flags.HIDDEN] = False

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.norm == "batch" and self.model in ("conv", "resnet20"):
            yield "--norm batch has running statistics, which no average has: use --norm group"


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    program: lanes.Program  # all networks are under masks, which keep all of a dense one
    keys: jax.Array  # of the seeds
    at: list[int]  # the steps of the prunes
    sparsities: list[float]  # after each
    steps: int
    test: measures.Accuracy

    @property
    def families(self) -> tuple[int, int, int]:
        """The sizes of the axes of a stack of all networks."""
        return len(ARMS), self.config.seeds, self.config.children


# --- the method -----------------------------------------------------------------------------------


def averaged(state: State, children: int) -> State:
    """Each child becomes the average of its family: weights, moments; masks and counts are equal.

    Args:
      state: a stack (families * children, ...).
    """

    def mean(x: jax.Array) -> jax.Array:
        family = x.reshape(-1, children, *x.shape[1:])
        floats = jnp.issubdtype(x.dtype, jnp.floating)
        one = family.mean(1) if floats else family[:, 0]
        return jnp.repeat(one, children, axis=0)

    return jax.tree.map(mean, state)


@jax.jit
def pruned(state: State, sparsity: Any) -> State:
    """The largest of the weights that are left stay, by one threshold for all layers."""
    magnitude = jp.prune(jp.magnitude, jp.global_threshold, lambda step: sparsity)
    update = lambda masks, params: magnitude.update(jp.MaskState(masks), params, step=0).masks
    return lanes.under(state, jax.vmap(update)(jp.get_masks(state.opt_state), state.params))


def at_a_prune(s: Study, phase: int, state: State) -> State:
    """What the arms do at a prune: average or not, prune or not."""
    m, each = s.config.children, s.config.children * s.config.seeds
    parts = {arm: lanes.part(state, i * each, (i + 1) * each) for i, arm in enumerate(ARMS)}
    sparsity, last = jnp.float32(s.sparsities[phase]), phase == len(s.at) - 1
    parts[SOUP] = pruned(averaged(parts[SOUP], m), sparsity)
    parts[ALONE] = pruned(parts[ALONE], sparsity)
    if last:
        parts[DENSE] = pruned(averaged(parts[DENSE], m), sparsity)
    return lanes.copied(lanes.join(*parts.values()))


def one_phase(s: Study, kept: Journal, phase: int, state: State) -> tuple[State, dict[str, Any]]:
    """Trains all networks to the next prune, or to the end; tests children and their averages."""
    start = s.at[phase - 1] if phase else 0
    is_end = phase == len(s.at)
    stop = s.steps if is_end else s.at[phase]
    lane = lane_of(s, phase)
    state = lanes.continued(kept, f"to step {stop}", s.program, state, lane, start, stop)
    record = {"step": stop, **tested(s, state), "seconds": kept.seconds()}
    return (state if is_end else at_a_prune(s, phase, state)), record


def lane_of(s: Study, phase: int) -> Lane:
    """The order of the examples of each network, in a phase: arms have the same orders."""
    child = jnp.arange(s.config.children)
    of_phase = data.folded(s.keys, Key.STUDY + phase)
    order = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(child))(of_phase)
    return Lane(lanes.tile(order.reshape(-1), len(ARMS)))


def first_state(s: Study) -> State:
    """Before any training: children of a seed have the same weights, or with --vary init others."""
    m, keys = s.config.children, s.keys
    if s.config.vary == "init":
        other = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(m)))
        first = lanes.initial(s.program, other(keys).reshape(-1))
    else:
        first = lanes.repeat(lanes.initial(s.program, keys), m)
    return lanes.begin(s.program, lanes.tile(first, len(ARMS)), lane_of(s, 0))


# --- what is measured -----------------------------------------------------------------------------


def tested(s: Study, state: State) -> dict[str, Any]:
    """By arm: the accuracy of the children (seeds, children), and of their average (seeds,)."""
    accuracy = s.test(state.network.variables).reshape(s.families)
    soups = averaged(state._replace(opt_state=()), s.config.children)
    of_soups = s.test(lanes.every({"params": soups.params}, s.config.children))
    of_soups = of_soups.reshape(s.families[:2])
    masks = state.network.masks
    kept = kept_weights(masks)[0].reshape(s.families)[:, :, 0]
    of_any = jax.tree.map(lambda m: lanes.split(m, -1, s.config.children).any(1), masks)
    kept_by_average = kept_weights(of_any)[0].reshape(s.families[:2])
    return {
        arm: {
            "children": accuracy[i].tolist(),
            "average": of_soups[i].tolist(),
            "kept_weights": kept[i].tolist(),
            "kept_by_average": kept_by_average[i].tolist(),
        }
        for i, arm in enumerate(ARMS)
    }


# --- the command ----------------------------------------------------------------------------------


def gmp_soup(config: Config) -> dict[str, Any]:
    """Trains, prunes, writes the folder `config.out`; returns what summary.json holds."""
    dataset, began = settings.dataset_of(config), time.perf_counter()
    s = study_of(config, dataset)
    with journal(config) as kept:
        end = lanes.phases(kept, len(s.at) + 1, first_state(s), partial(one_phase, s, kept))
        chance, seconds = dead.chance(dataset.test.labels), time.perf_counter() - began
        return report.write(s, end.network, kept.records, seconds, chance)


def study_of(config: Config, dataset: Dataset) -> Study:
    """The network, its steps and its prunes; raises `RecipeError` where prunes have no step."""
    plan = settings.plan_of(config, len(dataset.train.labels))
    shares = np.linspace(0, 1, config.prunes) if config.prunes > 1 else np.ones(1)
    at = [round(plan.steps * (config.begin + (config.end - config.begin) * x)) for x in shares]
    if len({0, *at, plan.steps}) < len(at) + 2:
        raise RecipeError(
            f"--prunes {config.prunes}: between any two prunes, before the first and after the "
            f"last there must be a step, and of {plan.steps} steps they are {at}; prune less often"
        )
    left = (np.arange(config.prunes) + 1) / config.prunes
    module = settings.module_of(config, dataset.classes)
    tx = jp.sparsify(settings.optimizer(config, plan.steps), jp.fixed(lanes.keep_all))
    how = dataset.train, plan.batch_size, plan.chunk_steps
    return Study(
        config=config,
        program=lanes.program(module, lambda lane: tx, *how),
        keys=lanes.seed_keys(config.seed, config.seeds),
        at=at,
        sparsities=(config.sparsity * (1 - (1 - left) ** 3)).tolist(),
        steps=plan.steps,
        test=measures.accuracy(module, dataset.test),
    )


main = cli.command(Config, gmp_soup)

if __name__ == "__main__":
    main()
