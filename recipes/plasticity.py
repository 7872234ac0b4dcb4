"""How pruned networks recover, over training: `python -m recipes.plasticity --help`.

Pruning plasticity is the ability of a pruned network to recover the accuracy that it had. Dense
networks train, and at several steps copies of them are pruned at once, by each of several rates. A
copy then trains on for some steps, under its mask, with the optimizer's state and by the learning
rates of its parent. The report tells the accuracy before pruning, just
after, and at the end of the copy. Test data choose nothing.

Reference: Liu et al., 2021, Sparse Training via Boosting Pruning Plasticity with Neuroregeneration.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax

import jaxprune as jp
from recipes.common import cli, dead, flags, lanes, measures, settings
from recipes.common.data import Dataset
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal
from recipes.common.lanes import Lane, State
from recipes.gmp import ALLOCATIONS
from recipes.reports import plasticity as report


@dataclass(frozen=True)
class Config(settings.Settings):
    """Accuracy before and after pruning, and after training on, at several steps of a training."""

    out: Path = Path("runs/plasticity")
    sparsity: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (
        *(0.5, 0.8, 0.9, 0.98),
    )
    """The rates of pruning: the fractions of weights that are pruned at once."""
    allocation: Annotated[str, flags.choice(ALLOCATIONS)] = "uniform"
    """The sparsity of each layer: by one threshold for all, which may empty a layer; by its shape
    (erk); or uniform."""
    prunes: flags.Count = 8
    """At how many steps copies are pruned, evenly spread; the first is before any training."""
    recover: Annotated[int | None, flags.at_least(1), flags.default("a tenth of the steps")] = None
    """Steps that a pruned copy trains on. The last copy ends with its parent."""
    seeds: settings.Seeds = 3
    """Seeds of dense networks, side by side with all their copies."""
    evaluations: Annotated[int, flags.HIDDEN] = 1  # networks are tested where they are pruned
    keep_best: Annotated[bool, flags.HIDDEN] = False

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if list(self.sparsity) != sorted(self.sparsity):
            seen = " ".join(f"{s:g}" for s in self.sparsity)
            yield f"--sparsity must rise, as the table does; got {seen}"


class Study(NamedTuple):
    """The values that all phases share."""

    config: Config
    program: lanes.Program  # all networks are under masks, which keep all of a dense one
    keys: jax.Array  # of the seeds
    at: list[int]  # the steps at which copies are pruned
    recover: int  # steps of a copy
    steps: int
    test: measures.Accuracy


# --- the method -----------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(1, 2))
def pruned(parents: State, sparsities: tuple[float, ...], allocation: str) -> State:
    """A copy of each parent at each sparsity, (sparsities * seeds, ...): the largest weights stay.

    Moments of the optimizer stay too; those of pruned weights become zero with the next step.
    """

    def masks_at(sparsity: float) -> Any:
        scores = lambda params: jp.magnitude(jp.kernels(params))
        of_one = lambda params: jp.select(scores(params), ALLOCATIONS[allocation], sparsity)
        return jax.vmap(of_one)(parents.params)

    masks = lanes.join(*map(masks_at, sparsities))
    return lanes.under(lanes.tile(parents, len(sparsities)), masks)


def one_phase(
    s: Study, kept: Journal, phase: int, parents: State
) -> tuple[State, dict[str, Any] | None]:
    """Trains the dense networks up to a prune; prunes copies, and trains these on.

    The last phase trains the dense networks to the end.
    """
    start = s.at[phase - 1] if phase else 0
    stop = s.at[phase] if phase < len(s.at) else s.steps
    parents = trained(s, kept, f"dense to step {stop}", parents, start, stop)
    if phase == len(s.at):
        return parents, {
            "step": s.steps,
            "test_accuracy": s.test(parents.network.variables).tolist(),
            "seconds": kept.seconds(),
        }
    rates, seeds = s.config.sparsity, s.config.seeds
    copies = pruned(parents, rates, s.config.allocation)
    just = s.test(copies.network.variables).reshape(len(rates), seeds)
    empty = [
        dead.empty_layers(lanes.part(copies.network.masks, i * seeds, (i + 1) * seeds))
        for i in range(len(rates))
    ]
    name = f"pruned at step {stop}"
    copies = trained(s, kept, name, copies, stop, stop + s.recover, len(rates))
    after = s.test(copies.network.variables).reshape(len(rates), seeds)
    return parents, {
        "step": stop,
        "test_accuracy": s.test(parents.network.variables).tolist(),
        "just_pruned": just.tolist(),
        "recovered": after.tolist(),
        "empty_layers": empty,
        "seconds": kept.seconds(),
    }


def trained(
    s: Study, kept: Journal, name: str, state: State, start: int, stop: int, copies: int = 1
) -> State:
    """The state after the steps from `start` to `stop`; copies see the examples of their parent."""
    if start == stop:
        return state
    lane = Lane(lanes.tile(s.keys, copies))
    return lanes.continued(kept, name, s.program, state, lane, start, stop)


# --- the command ----------------------------------------------------------------------------------


def plasticity(config: Config) -> dict[str, Any]:
    """Trains, prunes, writes the folder `config.out`; returns what summary.json holds."""
    dataset, began = settings.dataset_of(config), time.perf_counter()
    s = study_of(config, dataset)
    with journal(config) as kept:
        first = lanes.begin(s.program, lanes.initial(s.program, s.keys), Lane(s.keys))
        end = lanes.phases(kept, len(s.at) + 1, first, partial(one_phase, s, kept))
        chance, seconds = dead.chance(dataset.test.labels), time.perf_counter() - began
        return report.write(s, end.network, kept.records, seconds, chance)


def study_of(config: Config, dataset: Dataset) -> Study:
    """The network and its steps; raises `RecipeError` where copies do not fit into the training."""
    plan = settings.plan_of(config, len(dataset.train.labels))
    recover = max(round(plan.steps / 10), 1) if config.recover is None else config.recover
    last = plan.steps - recover  # of the steps at which copies are pruned
    if last < config.prunes - 1:
        raise RecipeError(
            f"--prunes {config.prunes} and --recover {recover} do not fit into {plan.steps} steps: "
            "the last copy ends with the training; prune less often, or train longer"
        )
    module = settings.module_of(config, dataset.classes)
    tx = jp.sparsify(settings.optimizer(config, plan.steps), jp.fixed(lanes.keep_all))
    program = lanes.program(
        module, lambda lane: tx, dataset.train, plan.batch_size, plan.chunk_steps
    )
    return Study(
        config=config,
        program=program,
        keys=lanes.seed_keys(config.seed, config.seeds),
        at=[round(i * last / max(config.prunes - 1, 1)) for i in range(config.prunes)],
        recover=recover,
        steps=plan.steps,
        test=measures.accuracy(module, dataset.test),
    )


main = cli.command(Config, plasticity)

if __name__ == "__main__":
    main()
