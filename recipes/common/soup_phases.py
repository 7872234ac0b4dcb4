"""The phases of sparse model soups: prune, retrain children, average, test; logged."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import measures, phases, results, settings, soups
from recipes.common.journal import Journal
from recipes.common.soup_study import SoupSettings, Study
from recipes.common.soups import Networks, Variables

SOUP, GREEDY, BEST, MEAN = "soup", "greedy soup", "best child", "mean child"
ENSEMBLE, IMP = "ensemble", "IMP"

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a phase


class Lineages(NamedTuple):
    """What goes from phase to phase."""

    soup: Networks
    imp: Networks  # one child, as long
    longer: Networks  # one child, as long as all together


def all_phases(config: SoupSettings, s: Study, journal: Journal) -> tuple[Lineages, Records]:
    """Every phase that the journal does not hold yet."""
    first = soups.initial(s.module, s.retraining.keys, np.asarray(s.program.train.images[:1]))
    lineages = journal.last(Lineages(first, first, first))
    for phase in range(len(journal.records), len(s.sparsities) + 1):
        if lineages is None:
            dense, record = train_dense(config, s, first, journal)
            lineages = Lineages(dense, dense, dense)
        else:
            lineages, record = one_phase(config, s, lineages, phase, journal)
        journal.log(record)
        journal.settle(lineages)
    assert lineages is not None  # there is a phase at least
    return lineages, journal.records


def train_dense(
    config: SoupSettings, s: Study, first: Networks, journal: Journal
) -> tuple[Networks, dict[str, Any]]:
    """The networks that are pruned, trained; and what is logged of them, as phase 0."""
    began = time.perf_counter()
    table = phases.rates(settings.rates(config, s.steps), s.steps, s.retraining.table)
    lanes = soups.lane(table, config.weight_decay, config.seeds)
    trained = soups.retrain(s.program, first, lanes, s.retraining.keys, s.steps, "dense", journal)
    dense = Networks(s.recalibrate(trained), first.masks)
    record = {
        "phase": 0,
        "sparsity": 0.0,
        "seconds": round(time.perf_counter() - began, 2),
        "test_accuracy": {"dense": _lists(s.test(*soups.parts(dense.variables)))},
    }
    return dense, record


def one_phase(
    config: SoupSettings, s: Study, lineages: Lineages, phase: int, journal: Journal
) -> tuple[Lineages, dict[str, Any]]:
    """Prunes and retrains every lineage; and what is logged of it."""
    began, sparsity = time.perf_counter(), s.sparsities[phase - 1]
    pruned = Lineages(*(soups.prune(networks, jnp.float32(sparsity)) for networks in lineages))
    children, imp, longer = retrained(config, s, pruned, phase, journal)
    greedy, uniform = s.greedy(children), s.average(children)
    tested = judge(config, s, children, greedy, [uniform, greedy.params, imp, longer])

    values = measures.between_siblings(s.measure, children, config.points)
    record = {
        "phase": phase,
        "sparsity": sparsity,
        "seconds": round(time.perf_counter() - began, 2),
        **tested,
        "error_barrier": measures.above_chord(values["error"]).tolist(),
        "loss_barrier": measures.above_chord(values["loss"]).tolist(),
        "error_on_paths": _lists(values["error"]),
        "kept_weights": {
            name: results.kept_weights(networks.masks)[0].tolist()
            for name, networks in zip(Lineages._fields, pruned, strict=True)
        },
    }
    soup = uniform if config.average == "uniform" else greedy.params
    ends = zip((soup, imp, longer), pruned, strict=True)
    return Lineages(*(Networks(variables, own.masks) for variables, own in ends)), record


def retrained(
    config: SoupSettings, s: Study, pruned: Lineages, phase: int, journal: Journal
) -> tuple[Any, Variables, Variables]:
    """Children (seeds, children, ...), and the networks (seeds, ...) of the other two lineages."""
    r, m, seeds = s.retraining, config.children, config.seeds
    own, longest = soups.variations(r, config.vary, m)
    of_children = jax.tree.map(lambda x: jnp.tile(x, (seeds,) + (1,) * (x.ndim - 1)), own)
    keys = soups.order_keys(r, config.vary, phase, m)
    single = soups.lane(
        phases.rates(jp.llr(r.peak, r.steps), r.steps, r.table), r.weight_decay, seeds
    )
    total = m * r.steps
    whole = soups.lane(phases.rates(jp.llr(r.peak, total), total, r.table), r.weight_decay, seeds)

    name = f"phase {phase} of {len(s.sparsities)}"
    both = soups.retrain(
        s.program,
        soups.joined(soups.repeated(pruned.soup, m), pruned.imp),
        soups.joined(of_children, single),
        jnp.concatenate([keys.reshape(-1), keys[:, 0]]),
        longest,
        f"{name}: children",
        journal,
    )
    alone = f"{name}: {longer_name(config)}"
    long = soups.retrain(s.program, pruned.longer, whole, keys[:, 0], total, alone, journal)
    children, imp = soups.parted(s.recalibrate(both), m * seeds)
    return soups.families(children, m), imp, s.recalibrate(long)


def judge(
    config: SoupSettings, s: Study, children: Any, greedy: jp.GreedySoup, others: list[Variables]
) -> dict[str, Any]:
    """Accuracies on test data, and what was chosen on validation data; lists are over seeds."""
    m, seeds = config.children, config.seeds
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), children)
    everyone = soups.parts(soups.joined(flat, *others))
    test, validation = (
        np.split(accuracy(*everyone), [m * seeds]) for accuracy in (s.test, s.validate)
    )
    of_children, chosen_by = (part[0].reshape(seeds, m) for part in (test, validation))
    best = chosen_by.argmax(1)  # the first of equal ones
    uniform, greedily, imp, longer = test[1].reshape(4, seeds)
    accuracy = {
        SOUP: uniform,
        GREEDY: greedily,
        BEST: of_children[np.arange(seeds), best],
        MEAN: of_children.mean(1),
        ENSEMBLE: s.together(*soups.parts(children)),
        IMP: imp,
        longer_name(config): longer,
    }
    return {
        "test_accuracy": {arm: _lists(values) for arm, values in accuracy.items()},
        "children_test_accuracy": _lists(of_children),
        "children_validation_accuracy": _lists(chosen_by),
        "soup_validation_accuracy": _lists(validation[1].reshape(4, seeds)[0]),
        "best_child": best.tolist(),
        "greedily_chosen": np.asarray(greedy.chosen).tolist(),
    }


def longer_name(config: SoupSettings) -> str:
    """That of the network that retrains as long as all children together."""
    return f"{IMP} {config.children}x"


def _lists(values: Any) -> Any:
    return np.asarray(values, np.float64).tolist()
