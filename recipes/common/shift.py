"""Networks on test data that are not like the training data: accuracy, calibration, attacks.

All networks of all runs see the same corrupted images. An attack (FGSM) moves every pixel by the
same amount in the direction that raises the loss of the network that it attacks.

References: Hendrycks and Dietterich, 2019, Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations; Goodfellow et al., 2015, Explaining and Harnessing Adversarial
Examples (FGSM); Guo et al., 2017, On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from recipes.common import report
from recipes.common.confidence import calibration_error
from recipes.common.corruptions import CORRUPTIONS, LIGHT, STRENGTHS, corrupted
from recipes.common.data import Dataset
from recipes.common.figures import shift as figure
from recipes.common.report import Picture

PICTURE = "plots/shift.png"
CLEAN, ATTACK = "clean", "attack"
ERROR, ERROR_SHIFTED = "calibration_error", "calibration_error_shifted"
ATTACKS = (2, 4, 8, 16, 32)  # how far a pixel moves, of 255
WHITE = {"digits": 16, "mnist": 255, "cifar10": 255}  # the highest value of a pixel
FEW = 4  # arms: with more there is no room for deviations
BATCH = 500

# the variables of a stack -> numbers: see `measure_of`
Measure = Callable[[Any], dict[str, np.ndarray]]
Shown = Mapping[str, Mapping[str, Any]]  # by arm, what a `Measure` gives: arrays or lists


def measure_of(module: nn.Module, dataset: Dataset, name: str) -> Measure:
    """A function from the variables of a stack to its numbers under shift, all lanes at once.

    It returns "clean" (lanes,) and, for every corruption and for "attack", (5, lanes): the accuracy
    on test data at each strength; and "calibration_error" (lanes,), on clean test data, and
    "calibration_error_shifted" (lanes,), the mean over all corruptions and strengths.
    """
    test, key = dataset.test, jax.random.key(0)
    white = WHITE[name]
    images = in_bytes(dataset, white)
    normalized = lambda x: ((x * (white / LIGHT) - dataset.mean) / dataset.std).astype(np.float32)
    mean, std = (x[None, None, None] for x in (dataset.mean, dataset.std))
    limits = [jnp.asarray((edge - mean) / std) for edge in (0, white)]
    moves = jnp.stack([jnp.asarray(white * n / LIGHT / std) for n in ATTACKS])

    def answers(variables: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(accuracy, calibration error), both (lanes,)."""
        batches = [_logits(module, variables, images[i : i + BATCH]) for i in starts]
        logits = np.concatenate([np.asarray(batch) for batch in batches], 1)
        right = (logits.argmax(-1) == test.labels).mean(1)
        return right, np.array([calibration_error(one, test.labels) for one in logits])

    def measure(variables: Any) -> dict[str, np.ndarray]:
        clean, error = answers(variables, test.images)
        found, errors = {CLEAN: clean}, []
        for corruption in CORRUPTIONS:
            seen = [
                answers(variables, normalized(corrupted(corruption, key, images, strength)))
                for strength in range(1, STRENGTHS + 1)
            ]
            found[corruption] = np.stack([accuracy for accuracy, _ in seen])
            errors += [error for _, error in seen]
        right = sum(
            np.asarray(_attacked(module, variables, *batch, moves, *limits))
            for batch in ([part[i : i + BATCH] for part in test] for i in starts)
        )
        found[ATTACK] = np.asarray(right).T / len(test.labels)
        return found | {ERROR: error, ERROR_SHIFTED: np.mean(errors, 0)}

    starts = range(0, len(test.labels), BATCH)
    return measure


def in_bytes(dataset: Dataset, white: int) -> np.ndarray:
    """The test images as bytes, from 0 to 255."""
    raw = np.rint(dataset.test.images * dataset.std + dataset.mean).astype(np.int32)
    return ((2 * LIGHT * raw + white) // (2 * white)).astype(np.uint8)


@partial(jax.jit, static_argnums=0)
def _logits(module: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """(lanes, n, classes)."""
    of_one: Any = jax.vmap(lambda one: module.apply(one, images))
    return of_one(variables)


@partial(jax.jit, static_argnums=0)
def _attacked(
    module: nn.Module,
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    moves: jax.Array,
    low: jax.Array,
    high: jax.Array,
) -> jax.Array:
    """How many answers are right after each move (moves, 1, 1, 1, c): int32 (lanes, moves)."""

    def of_one(one: Any) -> jax.Array:
        def loss(images: jax.Array) -> jax.Array:
            logits: Any = module.apply(one, images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

        uphill = jnp.sign(jax.grad(loss)(images))

        def right(move: jax.Array) -> jax.Array:
            logits: Any = module.apply(one, (images + move * uphill).clip(low, high))
            return jnp.sum(jnp.argmax(logits, -1) == labels)

        return jax.lax.map(right, moves)

    return jax.vmap(of_one)(variables)


# --- in a report ----------------------------------------------------------------------------------


def lists(numbers: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The numbers of a measure as JSON takes them."""
    return {name: np.asarray(values, np.float64).tolist() for name, values in numbers.items()}


def summary(arms: Shown) -> dict[str, Any]:
    """What summary.json has more: by arm each number over seeds, means over the strengths."""
    told = {arm: {name: report.over_seeds(x) for name, x in _rows(arms[arm])} for arm in arms}
    return {"shift": told} if arms else {}


def _rows(numbers: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    """(name, values (seeds,)) of the table, in its order."""
    by_strength = {name: np.mean(numbers[name], 0) for name in (*CORRUPTIONS, ATTACK)}
    every = {"all corruptions": np.mean([by_strength[name] for name in CORRUPTIONS], 0)}
    attack = {ATTACK: by_strength.pop(ATTACK)}
    errors = {name: np.asarray(numbers[name]) for name in (ERROR, ERROR_SHIFTED)}
    clean = {CLEAN: np.asarray(numbers[CLEAN])}
    return list((clean | by_strength | every | attack | errors).items())


def tables(arms: Shown) -> dict[str, report.Rows]:
    """What a report has more: a column for each arm, a row for each kind of shift, in percent."""
    few = len(arms) <= FEW
    rows: dict[str, list[str]] = {}
    for numbers in arms.values():
        for name, values in _rows(numbers):
            told = report.over_seeds(values)
            spread = f" ± {100 * told['std']:.2f}" if few and len(values) > 1 else ""
            said = rows.setdefault(name.replace("_", " "), [])
            said.append(f"{100 * told['mean']:.{2 if few else 1}f}{spread}")
    return {TITLE: (list(arms), [[name, *cells] for name, cells in rows.items()])} if arms else {}


TITLE = (
    f"Under shift, in %: the mean test accuracy over {STRENGTHS} strengths of each corruption; an "
    f"attack (FGSM) moves each pixel by {ATTACKS[0]} to {ATTACKS[-1]} of 255"
)


def pictures(arms: Shown) -> dict[str, Picture]:
    """The figure of accuracy over strength, a panel for each kind of shift; {} without arms."""
    if not arms:
        return {}
    panels = {
        kind: {arm: np.stack([numbers[CLEAN], *numbers[kind]]) for arm, numbers in arms.items()}
        for kind in (*CORRUPTIONS, ATTACK)
    }
    caption = (
        "Test accuracy over the strength of each corruption (0: clean images), and of an attack "
        "(FGSM). Means over seeds; bands from the worst seed to the best."
    )
    return {PICTURE: Picture(figure.over_strengths(panels), caption)}
