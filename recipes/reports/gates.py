"""What `recipes.gates` tells: how its arms are called, its numbers and its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import report, study
from recipes.common.figures import gates
from recipes.common.report import Picture

if TYPE_CHECKING:
    from recipes.gates import Config

LEARNED, HISTOGRAMS = "plots/gates.png", "plots/histograms.png"
BINS = 20  # of the histogram of gates


def name(arm: str, kept: float | None, config: Config) -> str:
    """The name of an arm: it tells the budget if there are several."""
    return arm if kept is None or len(config.kept) == 1 else f"{arm} {100 * kept:g}%"


def measured(
    gate: jp.gates.Gate,
    above: float,
    logits: Any,
    kept: Callable[[Any], Any],
    prices: jp.gates.Multipliers,
) -> dict[str, jax.Array]:
    """What is logged of one seed: the fraction kept, expected and at a threshold; a histogram."""
    gates = gate.deterministic(logits)
    values = jnp.concatenate([g.ravel() for g in jax.tree.leaves(gates)])
    return {
        "expected": kept(gate.p_open(logits)),
        "open": kept(jp.gates.threshold(gates, above)),
        "multiplier": prices.linear,
        "histogram": jnp.histogram(values, bins=BINS, range=(0.0, 1.0))[0] / values.size,
    }


def write(
    config: Config, outcome: study.Outcome, harden: int, targets: Sequence[optax.Schedule]
) -> dict[str, Any]:
    """Writes the folder of a run and prints its table; the content of summary.json.

    Args:
      harden: the step at which gates became masks.
      targets: the fractions to keep, of a step.
    """
    summary = report.summary(
        config,
        "test accuracy and sparsity with learned gates, beside dense training and GMP",
        kept=list(config.kept),
        **study.numbers(outcome),
    )
    gated = [arm for arm, made in outcome.arms.items() if made.learned]
    for arm in gated:
        summary["arms"][arm] |= _landed(outcome, arm, harden)
    figures = study.pictures(outcome) | _pictures(outcome, gated, harden, targets)
    study.publish(config, outcome, summary, "Learned gates", figures)
    for arm in gated:
        numbers = summary["arms"][arm]
        expected, open_ = (report.percent(numbers[key]) for key in ("expected_kept", "open_kept"))
        left = numbers["architectures"][0]
        print(
            f"{arm}: expected kept {expected}, open {open_}; layers of the first seed read {left}"
        )
    return summary


def _landed(outcome: study.Outcome, arm: str, harden: int) -> dict[str, Any]:
    """What the gates kept when they became masks, and the neurons that are left."""
    at = next(record[arm] for record in outcome.history if record["step"] >= harden)
    return {
        "expected_kept": report.over_seeds(at["expected"]),
        "open_kept": report.over_seeds(at["open"]),
        "architectures": architectures(jp.get_masks(outcome.states[arm].opt_state)),
    }


def architectures(masks: Any) -> list[str]:
    """How many inputs of each kernel are read, "219-214-100", for each seed of a stack of masks.

    Convolutions come first, then dense layers, each by number.
    """
    number = lambda layer: (layer.startswith("Dense"), int(layer.rpartition("_")[2]))
    kernels = {k: m["kernel"] for k, m in masks.items() if "_" in k and m.get("kernel") is not None}
    read = []
    for layer in sorted(kernels, key=number):
        mask = np.asarray(kernels[layer])
        others = tuple(axis for axis in range(1, mask.ndim) if axis != mask.ndim - 2)
        read.append(mask.any(others).sum(1))
    return ["-".join(str(n) for n in each) for each in np.transpose(read)]


def _pictures(
    outcome: study.Outcome, gated: Sequence[str], harden: int, targets: Sequence[optax.Schedule]
) -> dict[str, Picture]:
    """How gates close."""
    history = [record for record in outcome.history if record["step"] <= harden] or outcome.history
    steps = [record["step"] for record in history]
    curves = [(steps, np.asarray([target(step) for step in steps])[:, None]) for target in targets]
    return {
        LEARNED: Picture(
            gates.budgets(history, gated, curves),
            "What is expected to be kept (lines) and what a threshold would keep (dotted), until "
            "gates become masks; grey: the targets. Right: the price of what is kept, relative to "
            "the target. Means over seeds; bands from the lowest seed to the highest.",
        ),
        HISTOGRAMS: Picture(
            gates.histograms(history, gated),
            "The fraction of gates with each value, as in testing, over the steps; all seeds.",
        ),
    }
