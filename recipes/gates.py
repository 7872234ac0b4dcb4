"""Gates that learn which weights or neurons to keep: `python -m recipes.gates --help`.

Trains weights under gates until --harden, when gates become masks that meet the budget --kept; what
is kept trains on without gates. Beside it, from the same weights and on the same batches, dense
training and gradual magnitude pruning to the same sparsity. Writes a folder that reproduces itself.

References: Louizos, Welling and Kingma, 2018 (hard concrete); Maddison et al., 2017 (binary
concrete); Bengio et al., 2013 (straight through); Savarese et al., 2020 (continuous
sparsification); Zhi et al., 2023 (consensus); Zhu and Gupta, 2017 (gradual magnitude pruning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np
import optax

import jaxprune as jp
from jaxprune.programs.flops import Flops
from recipes.common import cli, flags, gating, models, report, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset
from recipes.common.figures import gates
from recipes.common.report import Picture
from recipes.gmp import gradual

LEARNED, HISTOGRAMS = "plots/gates.png", "plots/histograms.png"
LEVELS = ("neuron", "weight", "consensus")
BUDGETS = ("weights", "flops")
FAMILIES = ("hard_concrete", "binary_concrete", "bernoulli", "straight_through", "continuous")


@dataclass(frozen=True)
class Config(settings.Settings):
    """Gates that learn which weights or neurons to keep, several seeds in one program."""

    out: Path = Path("runs/gates")
    level: Annotated[tuple[str, ...], flags.choice(LEVELS), flags.DISTINCT] = LEVELS[:2]
    """What has a gate: neurons, weights, or (consensus) neurons, by what most inputs want."""
    gate: Annotated[str, flags.choice(FAMILIES)] = "hard_concrete"
    """The family of gates; continuous is continuous sparsification."""
    kept: Annotated[tuple[float, ...], flags.within("(0, 1)"), flags.DISTINCT] = (0.1,)
    """The fractions of the budget to keep."""
    budget: Annotated[str, flags.choice(BUDGETS)] = "weights"
    """What is counted; pruned neurons save their share of both sides of a layer."""
    penalty: Annotated[
        float | None, flags.within("(0, inf)"), flags.default("a Lagrangian, that lands on --kept")
    ] = None
    """A fixed price of each weight, over the number of examples: the lambda of the L0 paper."""
    falls: Annotated[float, flags.within("(0, harden]")] = 0.4
    """When the target has fallen from 1 to --kept, as a fraction of the steps."""
    harden: Annotated[float, flags.within("(0, 1)")] = 0.7
    """When gates become masks and GMP is at its sparsity, as a fraction of the steps."""
    open: float = 2.0
    """The logits of gates at the start."""
    gate_rate: Annotated[float, flags.within("(0, inf)")] = 0.05
    """The learning rate of gates and multipliers."""
    every: Annotated[int, flags.at_least(1)] = 10
    """gmp: steps between updates of the masks."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        yield from super().conflicts()
        if self.penalty is not None and "consensus" in self.level:
            yield "--level consensus needs a budget: --kept, without --penalty"
        if set(self.level) - {"weight"}:
            if self.model == "resnet20":
                yield "--level neuron (consensus) needs a model without branches: mlp, lenet, conv"
            if self.model == "conv" and self.norm != "batch":
                yield (
                    "--level neuron (consensus) of --model conv needs --norm batch: group norm "
                    "mixes channels"
                )


# --- the method -----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training; for each budget gates of each level, and GMP."""
    module = models.model(config.model, dataset.classes, config.norm, config.width)
    dense = settings.optimizer(config, steps)
    flops = flops_of(module, dataset) if config.budget == "flops" else None
    of_level = {
        "neuron": gating.neurons(config.open, flops, gating.sequential),
        "weight": gating.weights(config.open, flops),
    }
    made = {"dense": Arm(module, dense)}
    for kept in config.kept if config.penalty is None else (None,):
        plan = plan_of(config, kept, steps, examples=len(dataset.train.labels))
        for level in config.level:
            if level == "consensus":
                votes = plan._replace(gate=lambda step: gating.consensus_gate(), above=0.5)
                own = gating.consensus_arm(
                    module, dense, of_level["neuron"], votes, dataset.train.images
                )
            else:
                own = gating.arm(module, dense, of_level[level], plan)
            made[name(level, kept, config)] = own
        if kept is not None:
            when = config.every, 0.1, config.harden
            gmp = gradual(dense, steps, 1 - kept, *when)
            made[name("gmp", kept, config)] = Arm(module, gmp, Weights.SPARSE)
    return made


def plan_of(config: Config, kept: float | None, steps: int, examples: int) -> gating.Plan:
    """How gates are learned."""
    harden = hardened_at(config, steps)
    target = None if kept is None else falling(config, kept, steps)
    gate, above = families(harden)[config.gate]
    price = None if config.penalty is None else config.penalty / examples
    return gating.Plan(gate, above, target, kept, price, harden, config.gate_rate)


def falling(config: Config, kept: float, steps: int) -> optax.Schedule:
    """The target: from 1 to what is to be kept."""
    falls = min(max(round(config.falls * steps), 1), hardened_at(config, steps))
    return optax.polynomial_schedule(1.0, kept, power=3, transition_steps=falls)


def families(harden: int) -> dict[str, tuple[Callable[[jax.Array], jp.gates.Gate], float]]:
    """Name -> (the gate of a step, above what it is open)."""
    slope = optax.exponential_decay(1.0, harden, 200.0)
    return {
        "hard_concrete": (lambda step: jp.gates.hard_concrete(), 0.0),
        "binary_concrete": (lambda step: jp.gates.binary_concrete(2 / 3), 0.5),
        "bernoulli": (lambda step: jp.gates.bernoulli(), 0.5),
        "straight_through": (lambda step: jp.gates.straight_through(), 0.5),
        # plain sigmoids: gates harden to masks, which are 1 where open
        "continuous": (lambda step: jp.gates.continuous_sparsification(slope(step), math.inf), 0.5),
    }


def flops_of(module: nn.Module, dataset: Dataset) -> Flops:
    """Those of one image."""
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    rest = {k: v for k, v in variables.items() if k != "params"}
    apply = lambda params, x, rest: module.apply({"params": params, **rest}, x)
    return jp.count_flops(apply, variables["params"], image, rest)


def name(arm: str, kept: float | None, config: Config) -> str:
    """That of an arm: it tells the budget if there are several."""
    return arm if kept is None or len(config.kept) == 1 else f"{arm} {100 * kept:g}%"


# --- the command ----------------------------------------------------------------------------------


def learn_gates(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    summary = report.summary(
        config,
        "test accuracy and sparsity with learned gates, beside dense training and GMP",
        kept=list(config.kept),
        **study.numbers(outcome),
    )
    harden = hardened_at(config, summary["steps"])
    for arm in gated(outcome):
        summary["arms"][arm] |= landed(outcome, arm, harden)
    figures = study.pictures(outcome) | pictures(config, outcome, harden)
    study.publish(config, outcome, summary, "Learned gates", figures)
    for arm in gated(outcome):
        print(in_words(arm, summary["arms"][arm]))
    return summary


def hardened_at(config: Config, steps: int) -> int:
    """The step at which gates become masks: one that is logged."""
    often = config.log_every or settings.LOG_EVERY[config.model]
    return max(round(config.harden * steps / often) * often, min(often, steps - 1))


def gated(outcome: study.Outcome) -> list[str]:
    """The names of the arms with gates."""
    return [arm for arm, made in outcome.arms.items() if made.learned]


def landed(outcome: study.Outcome, arm: str, harden: int) -> dict[str, Any]:
    """What gates had come to when they became masks, and the neurons that are left."""
    at = next(record[arm] for record in outcome.history if record["step"] >= harden)
    masks = jp.get_masks(outcome.states[arm].opt_state)
    return {
        "expected_kept": report.over_seeds(at["expected"]),
        "open_kept": report.over_seeds(at["open"]),
        "architectures": gating.architectures(masks),
    }


def in_words(arm: str, numbers: dict[str, Any]) -> str:
    """A line for the terminal."""
    expected, open_ = (report.percent(numbers[key]) for key in ("expected_kept", "open_kept"))
    left = numbers["architectures"][0]
    return f"{arm}: expected kept {expected}, open {open_}; layers of the first seed read {left}"


def pictures(config: Config, outcome: study.Outcome, harden: int) -> dict[str, Picture]:
    """How gates close."""
    history = [record for record in outcome.history if record["step"] <= harden] or outcome.history
    steps = [record["step"] for record in history]
    targets = []
    for kept in config.kept if config.penalty is None else ():
        target = falling(config, kept, outcome.history[-1]["step"])
        targets.append((steps, np.asarray([target(step) for step in steps])[:, None]))
    return {
        LEARNED: Picture(
            gates.budgets(history, gated(outcome), targets),
            "What is expected to be kept (lines) and what a threshold would keep (dotted), until "
            "gates become masks; grey: the targets. Right: the price of what is kept, relative to "
            "the target. Means over seeds; bands from the lowest seed to the highest.",
        ),
        HISTOGRAMS: Picture(
            gates.histograms(history, gated(outcome)),
            "The fraction of gates with each value, as in testing, over the steps; all seeds.",
        ),
    }


main = cli.command(Config, learn_gates)

if __name__ == "__main__":
    main()
