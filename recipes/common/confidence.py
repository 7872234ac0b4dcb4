"""How sure networks are, and how right: calibration on test data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BINS = 15


def calibration_error(logits: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """The expected calibration error: |accuracy - confidence| of bins, by their examples.

        sum_bins (n_bin / n) |accuracy_bin - confidence_bin|

    Bins of confidence have one width and are open below: (0, 1/15], ..., (14/15, 1].

    Args:
      logits: (n, classes).
      labels: int (n,).

    Reference: Guo et al., 2017, On Calibration of Modern Neural Networks.
    """
    sure, right = confidence(logits), logits.argmax(-1) == labels
    of = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(of, weights=right - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def confidence(logits: np.ndarray) -> np.ndarray:
    """The probability of the answer that a network gives, float64 (n,)."""
    return np.exp(log_probabilities(logits)).max(-1)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    """Like the logits, float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def judged(logits: np.ndarray, labels: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
    """What one network's answers come to.

    Args:
      logits, teacher: of the network and of its teacher (n, classes).
      labels: int (n,).

    Returns:
      "test_accuracy", "calibration_error", "overconfidence" (mean confidence minus accuracy),
      "loss" (cross-entropy), and "as_teacher" (the share of answers that are the teacher's).
    """
    answers = logits.argmax(-1)
    accuracy = float(np.mean(answers == labels))
    return {
        "test_accuracy": accuracy,
        "calibration_error": calibration_error(logits, labels),
        "overconfidence": float(confidence(logits).mean()) - accuracy,
        "loss": float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean()),
        "as_teacher": float(np.mean(answers == teacher.argmax(-1))),
    }


def of_seeds(logits: np.ndarray, labels: np.ndarray, told: np.ndarray) -> dict[str, list[float]]:
    """The measures of `judged`, each (seeds,), of logits (seeds, n, classes)."""
    seeds = [judged(own, labels, of) for own, of in zip(logits, told, strict=True)]
    return {key: [numbers[key] for numbers in seeds] for key in seeds[0]}


def logits_of(
    fn: Callable[..., Any], images: np.ndarray, batch_size: int = 1000
) -> Callable[[Any], np.ndarray]:
    """A function from a stack of the params of `fn` to its logits (lanes, n, classes)."""
    of = jax.jit(jax.vmap(fn, in_axes=(0, None)))
    batches = [jnp.asarray(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
    return lambda stack: np.concatenate([np.asarray(of(stack, x)) for x in batches], 1)
