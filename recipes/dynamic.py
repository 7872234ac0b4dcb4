"""Dynamic sparse training beside dense training: `python -m recipes.dynamic --help`.

Trains several seeds in one program, by one method or by several in turns, from the same weights and
on the same batches. Writes a folder that reproduces itself.

References: Mocanu et al., 2018 (SET); Evci et al., 2020 (RigL); Liu et al., 2021 (ITOP; GraNet);
Jayakumar et al., 2020 (Top-KAST); Lin et al., 2020 (DPF); Zhu and Gupta, 2017 (GMP); Wang et al.,
2023 (ISS); Zhang et al., 2022 (BiP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import flax.linen as nn
import jax
import optax

import jaxprune as jp
from recipes.common import cli, flags, report, settings, study
from recipes.common.arms import Arm, Weights
from recipes.common.data import Dataset
from recipes.common.figures import style
from recipes.common.report import Picture
from recipes.gmp import pruning_steps

CHURN = "plots/churn.png"
METHODS = ("static", "set", "rigl", "granet", "gmp", "top_kast", "dpf", "iss", "bip")
ALLOCATIONS = {"erk": jp.erk, "er": jp.er, "uniform": jp.uniform}
DENSE_COPIES = dict.fromkeys(("top_kast", "dpf", "bip"), Weights.DENSE_COPY)
TOP_KAST_DECAY = 1e-4
# Weights outside the network learn, and drift until they are next compared with those inside: so
# these methods update more often. DPF and BiP as their authors; Top-KAST less often than its paper.
EVERY = {"top_kast": 5, "dpf": 16, "bip": 1}
EVERY_ELSE = 50


@dataclass(frozen=True)
class Config(settings.Settings):
    """Dynamic sparse training beside dense training, several seeds in one program."""

    out: Path = Path("runs/dynamic")
    method: Annotated[tuple[str, ...], flags.choice(METHODS), flags.DISTINCT] = ("rigl",)
    """One method, or several to train side by side."""
    sparsity: flags.Fraction = 0.95
    """The fraction of weights that are pruned at the end."""
    allocation: Annotated[
        str | None,
        flags.choice(ALLOCATIONS),
        flags.default("erk; top_kast, iss uniform; gmp, dpf, bip one threshold for all layers"),
    ] = None
    """The sparsity of each layer, for every method."""
    every: Annotated[
        int | None, flags.at_least(1), flags.default("50; top_kast 5; dpf 16, bip 1, as published")
    ] = None
    """Steps between updates of the masks. set rewires as often as rigl, as little and as long, so
    that they differ only in what grows. The paper of set rewires 30 % after each epoch, to the
    last."""
    begin: flags.Fraction = 0.1
    """gmp, dpf, bip: when pruning begins, as a fraction of the steps."""
    end: Annotated[float, flags.within("(begin, 1]")] = 0.75
    """set, rigl: when rewiring ends; gmp, dpf: when the final sparsity is reached; iss: when the
    weights that shrink are pruned; bip: when the masks stop to learn."""
    fraction: Annotated[
        float | None, flags.within("[0, 1]"), flags.default("set, rigl 0.3; granet 0.5")
    ] = None
    """set, rigl, granet: the fraction of kept weights that the first update rewires."""
    initial_sparsity: Annotated[float, flags.within("[0, sparsity]")] = 0.0
    """granet: the fraction pruned at the start; 0 is dense to sparse, 0.5 sparse to sparse."""
    backward_sparsity: Annotated[
        float | None,
        flags.within("[0, sparsity]"),
        flags.default("half of --sparsity"),
    ] = None
    """top_kast: the fraction of weights that are not trained."""
    shrink: Annotated[float, flags.within("[0, 1]")] = 0.95
    """iss: what a step leaves of each of the smallest weights; 0 is hard thresholding."""
    mask_rate: flags.NotNegative = 1.0
    """bip: the learning rate of the scores, by SGD with momentum 0.9; 0 is one-shot magnitude."""
    gamma: flags.Positive = 1.0
    """bip: the strength of the penalty on the weights, as the gradient of the scores has it."""
    replace_step: bool = False
    """An update of the masks takes the place of the optimizer's step, as in RigL's code."""


# --- the methods ----------------------------------------------------------------------------------


def arms(config: Config, dataset: Dataset, steps: int) -> dict[str, Arm]:
    """Dense training, and each of the methods."""
    module = settings.module_of(config, dataset.classes)
    dense = settings.optimizer(config, steps)
    sparse = optimizers(config, dense, steps)
    check_layers(config, module, dataset)
    made = {"dense": Arm(module, dense)}
    for method in config.method:
        made[method] = Arm(module, sparse[method], DENSE_COPIES.get(method, Weights.SPARSE))
    return made


def optimizers(
    config: Config, dense: optax.GradientTransformation, steps: int
) -> dict[str, Callable[[jax.Array], optax.GradientTransformation]]:
    """Method -> the key of an arm -> its optimizer: the only difference between the arms."""
    sparsity = config.sparsity
    n = config.every or EVERY_ELSE
    often = {method: config.every or steps for method, steps in EVERY.items()}
    begin, end = pruning_steps(config.begin, config.end, steps)
    last = max(end, steps - n)  # the last masks have at least n steps of training

    allocation = allocations(config)
    cubic = partial(optax.polynomial_schedule, end_value=sparsity, power=3)
    gradual = cubic(0.0, transition_steps=end - begin, transition_begin=begin)
    by_half = cubic(config.initial_sparsity, transition_steps=max(round(steps / 2), 1))
    first = lambda default: default if config.fraction is None else config.fraction
    rewired = optax.cosine_decay_schedule(first(0.3), end)
    regenerated = optax.cosine_decay_schedule(first(0.5), steps, alpha=0.01)
    backward = sparsity / 2 if config.backward_sparsity is None else config.backward_sparsity

    def sparsified(transform: jp.MaskTransform, start: int = 0, stop: int | None = None) -> Any:
        masks = jp.every(n, jp.itop(transform), start, stop)
        return jp.sparsify(dense, masks, config.replace_step)

    def granet(key: jax.Array) -> optax.GradientTransformation:
        return sparsified(jp.granet(key, by_half, regenerated, allocation["granet"]), stop=last)

    def top_kast(key: jax.Array) -> optax.GradientTransformation:
        masks = jp.every(
            often["top_kast"], jp.itop(jp.top_kast(sparsity, backward, allocation["top_kast"]))
        )
        return jp.train_only(optax.chain(jp.dynamic.top_kast_decay(TOP_KAST_DECAY), dense), masks)

    def dpf(key: jax.Array) -> optax.GradientTransformation:
        masks = jp.itop(jp.dpf(gradual, allocation["dpf"]))
        masks = jp.every(often["dpf"], masks, begin, max(end, steps - often["dpf"]))
        return jp.keep_dense(dense, masks)

    def iss(key: jax.Array) -> optax.GradientTransformation:
        how = allocation["iss"]
        shrinking = optax.chain(dense, jp.dynamic.soft_shrinkage(sparsity, config.shrink, how))
        cut = jp.itop(jp.prune(jp.magnitude, how, sparsity))
        return jp.sparsify(shrinking, jp.every(1, cut, end, end))

    def bip(key: jax.Array) -> optax.GradientTransformation:
        scores = optax.sgd(config.mask_rate, 0.9)
        masks = jp.itop(jp.bip(sparsity, scores, config.gamma, allocation["bip"]))
        return jp.train_only(dense, jp.every(often["bip"], masks, begin, end))

    return {
        "static": lambda key: sparsified(jp.static(key, sparsity, allocation["static"])),
        "set": lambda key: sparsified(jp.set(key, sparsity, rewired, allocation["set"]), stop=end),
        "rigl": lambda key: sparsified(
            jp.rigl(key, sparsity, rewired, allocation["rigl"]), stop=end
        ),
        "granet": granet,
        "gmp": lambda key: sparsified(
            jp.prune(jp.magnitude, allocation["gmp"], gradual), begin, end
        ),
        "top_kast": top_kast,
        "dpf": dpf,
        "iss": iss,
        "bip": bip,
    }


def allocations(config: Config) -> dict[str, Any]:
    """Method -> the sparsity of each layer."""
    if config.allocation is not None:
        return dict.fromkeys(METHODS, ALLOCATIONS[config.allocation])
    of_all, of_each = jp.global_threshold, jp.uniform
    own = dict.fromkeys(("gmp", "dpf", "bip"), of_all)
    return dict.fromkeys(METHODS, jp.erk) | own | dict.fromkeys(("top_kast", "iss"), of_each)


def check_layers(config: Config, module: nn.Module, dataset: Dataset) -> None:
    """Raises `RecipeError` if a layer would keep no weight; random starts check it themselves."""
    for method in ("gmp", "top_kast", "dpf", "iss", "bip"):
        allocation = allocations(config)[method]
        if method in config.method and allocation is not jp.global_threshold:

            def ask(key: jax.Array, allocation: Any = allocation) -> optax.GradientTransformation:
                return jp.track_masks(jp.static(key, config.sparsity, allocation))

            study.check_arm(method, Arm(module, ask), dataset.train.images)


# --- the command ----------------------------------------------------------------------------------


def dynamic_sparse_training(config: Config) -> dict[str, Any]:
    """Trains, writes the folder `config.out`, prints a table; returns what summary.json holds."""
    outcome = study.train(config, partial(arms, config))
    summary = report.summary(
        config,
        "test accuracy of dynamic sparse training, beside dense training",
        methods=list(config.method),
        **study.numbers(outcome),
    )
    pictures = {**study.pictures(outcome), CHURN: churn_picture(outcome)}
    return study.publish(config, outcome, summary, "Dynamic sparse training", pictures)


def churn_picture(outcome: study.Outcome) -> Picture:
    """The picture of how masks change."""
    first, previous, explored = (
        {arm: style.curve(outcome.history, arm, key) for arm in study.masked(outcome)}
        for key in ("overlap_first", "overlap_previous", "ever_active")
    )
    return Picture(
        style.churn(first, previous, explored, style.looks(outcome.arms)),
        "How the masks move: overlap (intersection over union) with the first masks of training "
        "and with those of the line of metrics.jsonl before, where they had changed since; and "
        "the fraction of weights that were ever active, for methods that do not start dense.",
    )


main = cli.command(Config, dynamic_sparse_training)

if __name__ == "__main__":
    main()
