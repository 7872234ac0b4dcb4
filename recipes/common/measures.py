"""Measures of studies: error and loss of networks, also between two others; changes of masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from recipes.common import data, flags
from recipes.common.data import Split
from recipes.common.folder import RecipeError
from recipes.common.settings import Settings

STATISTICS = ("recalibrate", "interpolate")

Measure = Callable[[Any], dict[str, jax.Array]]  # variables -> {"error", "loss"}: scalars
Accuracy = Callable[[Any], np.ndarray]  # the variables of a stack -> (lanes,)


@dataclass(frozen=True)
class PathSettings(Settings):
    """The flags of every study of pairs."""

    test_examples: Annotated[int | None, flags.at_least(1), flags.default("all")] = None
    """Measure between networks on this many test examples, the first ones."""
    statistics: Annotated[str, flags.choice(STATISTICS)] = "recalibrate"
    """Running statistics between two networks of --norm batch: computed again, or interpolated."""
    points: Annotated[int, flags.odd(3)] = 11
    """Networks along each path, both ends included."""
    threshold: Annotated[float, flags.within("(0, 100]")] = 2.0
    """Networks are connected if the error rises by less than this many percentage points."""


def rule(config: PathSettings, module: nn.Module, images: np.ndarray) -> str | None:
    """How running statistics between two networks are made; None where there are none."""
    variables = jax.eval_shape(module.init, jax.random.key(0), images[:1])
    return config.statistics if "batch_stats" in variables else None


def in_words(rule: str | None) -> str:
    """A rule for running statistics, in words after "on test data"."""
    return f"; running statistics between them: {rule}" if rule else ""


def _padded(split: Split, batch_size: int) -> Split:
    """The split in whole batches, on the device; examples that fill the last have the label -1."""
    batch_size = min(batch_size, len(split.labels))
    padding = -len(split.labels) % batch_size
    images = np.concatenate([split.images, np.zeros_like(split.images[:padding])])
    empty = np.full((padding, *split.labels.shape[1:]), -1, np.int32)
    labels = np.concatenate([split.labels, empty])
    parts = (part.reshape(-1, batch_size, *part.shape[1:]) for part in (images, labels))
    return jax.device_put(Split(*parts))


def measure_on(module: nn.Module, split: Split, batch_size: int = 1000) -> Measure:
    """A function from variables to their error and mean cross-entropy on all of `split`."""
    examples, batches = len(split.labels), _padded(split, batch_size)

    def measure(variables: Any) -> dict[str, jax.Array]:
        def sums(batch):
            images, labels = batch
            logits: Any = module.apply(variables, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
            wrong = jnp.argmax(logits, -1) != labels
            counts = labels >= 0
            return jnp.sum(wrong & counts), jnp.sum(jnp.where(counts, losses, 0.0))

        wrong, losses = jax.lax.map(sums, batches)
        return {"error": wrong.sum() / examples, "loss": losses.sum() / examples}

    return measure


class Losses(NamedTuple):
    """The training loss as functions of the params, over batches that are on the device."""

    both: Measure  # {"loss", "error"}
    loss: Callable[[Any], jax.Array]  # the loss alone: it has derivatives


def losses_on(module: nn.Module, split: Split, examples: int) -> Losses:
    """Loss and error on the first examples, in batches of at most 500, all of one size."""
    batches = math.ceil(examples / 500)
    size = examples // batches
    images, labels = (part[: batches * size] for part in split)
    stacked = jax.device_put(
        (images.reshape(batches, size, *images.shape[1:]), labels.reshape(batches, size))
    )

    def both(params: Any, batch: Any) -> dict[str, jax.Array]:
        logits: Any = module.apply({"params": params}, batch[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return {"loss": losses.mean(), "error": jnp.mean(jnp.argmax(logits, -1) != batch[1])}

    def loss(params: Any, batch: Any) -> jax.Array:
        return both(params, batch)["loss"]

    return Losses(jp.analysis.over_batches(both, stacked), jp.analysis.over_batches(loss, stacked))


def accuracy(module: Any, split: Split, batch_size: int = 250) -> Accuracy:
    """A function from the variables of a stack to their accuracy (lanes,) on all of `split`.

    An example may have several labels, such as the tokens of a text: (n, t).
    """
    batches = _padded(split, batch_size)

    @jax.jit
    def right(variables, batches):
        def count(variables, images, labels):
            return jnp.sum(jnp.argmax(module.apply(variables, images), -1) == labels)

        over_lanes = jax.vmap(count, in_axes=(0, None, None))
        return jax.lax.map(lambda batch: over_lanes(variables, *batch), batches).sum(0)

    return lambda variables: np.asarray(right(variables, batches)) / split.labels.size


def dead_rate(module: nn.Module, images: np.ndarray) -> Accuracy:
    """A function from the variables of a stack to their dynamic dead rate (lanes,) on `images`."""
    batch = jax.device_put(images)

    @jax.jit
    @jax.vmap
    def rate(variables):
        return jp.analysis.dead_relus(module.apply, variables, batch).dynamic

    return lambda variables: np.asarray(rate(variables))


def recalibrated(
    measure: Measure, module: nn.Module, train: Split, batch_size: int, examples: int = 2000
) -> Measure:
    """`measure` of networks whose running statistics are computed again on training data."""
    anew = recalibration(module, train, batch_size, examples)
    return lambda variables: measure(anew(variables))


def recalibration(
    module: nn.Module, train: Split, batch_size: int, examples: int = 2000
) -> Callable[[Any], Any]:
    """A function that computes the running statistics of variables again, on training data."""
    batch_size = min(batch_size, len(train.labels))
    batches = max(1, min(examples, len(train.labels)) // batch_size)
    images = train.images[: batches * batch_size]
    stacked = jax.device_put(images.reshape(batches, batch_size, *images.shape[1:]))

    def update(variables, images):
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[1]

    return lambda variables: jp.analysis.recalibrate(update, variables, stacked)


def measure_of(config: PathSettings, module: nn.Module, dataset: data.Dataset) -> Measure:
    """Test error and loss of a network between two others, by the rule that `config` asks for."""
    test = Split(*(part[: config.test_examples] for part in dataset.test))
    measure = measure_on(module, test)
    if rule(config, module, dataset.train.images) == "recalibrate":
        return recalibrated(measure, module, dataset.train, config.batch_size)
    return measure


def check_finite(name: str, stack: Any) -> None:
    """Raises `RecipeError` if a network of a stack has diverged; `name` says what the stack is."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(stack)]
    finite = np.all([np.isfinite(x).reshape(len(x), -1).all(1) for x in leaves], axis=0)
    if not finite.all():
        places = ", ".join(map(str, np.flatnonzero(~finite)))
        raise RecipeError(
            f"{name}: training has diverged in {(~finite).sum()} of {len(finite)} networks (places "
            f"{places}): weights are nan or inf, and nothing can be measured between them; "
            "lower --learning-rate"
        )


def between_siblings(measure: Measure, families: Any, points: int) -> dict[str, np.ndarray]:
    """`measure` along the paths between siblings: (families, pairs, points).

    `families` are variables (families, children, ...). A path leads from the earlier child to the
    later; pairs are in the order of `np.triu_indices`.
    """
    count, children = jax.tree.leaves(families)[0].shape[:2]
    check_finite("children", jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), families))
    upper = np.triu_indices(children, k=1)
    found = []
    for i in range(count):
        siblings = jax.tree.map(lambda x, i=i: x[i], families)
        values = jp.pairwise(
            lambda a, b: jp.analysis.loss_along(measure, a, b, points)[1], siblings, diagonal=0.0
        )
        found.append(jax.tree.map(lambda v: np.asarray(v)[upper], values))
    return jax.tree.map(lambda *v: np.stack(v), *found)


def above_chord(values: np.ndarray) -> np.ndarray:
    """The barrier of each path: values (..., points) -> (...)."""
    v = np.asarray(values, np.float64)
    alphas = np.linspace(0, 1, v.shape[-1])
    return (v - (v[..., :1] + alphas * (v[..., -1:] - v[..., :1]))).max(-1)


def above_ends(values: np.ndarray) -> np.ndarray:
    """The instability of each path: values (..., points) -> (...)."""
    v = np.asarray(values, np.float64)
    return v.max(-1) - (v[..., 0] + v[..., -1]) / 2


def over_pairs(matrix: np.ndarray, at_chance: bool = False) -> dict[str, Any]:
    """{mean, error, highest, matrix}; the error by the jackknife, None for two seeds.

    With a network `at_chance` only the matrix is given: from chance to chance nothing rises.
    """
    if at_chance:
        return {"mean": None, "error": None, "highest": None, "matrix": matrix.tolist()}
    off = matrix[np.triu_indices(len(matrix), k=1)]
    error = float(jp.analysis.jackknife(matrix).standard_error) if len(matrix) > 2 else None
    return {
        "mean": float(off.mean()),
        "error": error,
        "highest": float(off.max()),
        "matrix": matrix.tolist(),
    }


def over_siblings(
    per_seed: list[list[float]], children: int, at_chance: bool = False
) -> dict[str, Any]:
    """{mean, error, per_seed} of pairs of children (seeds, pairs); means are None `at_chance`.

    The error is the standard error over seeds, which are independent. With one seed it is the
    jackknife's over children, which are not; with one seed and two children it is None.
    """
    values = np.asarray(per_seed)
    means = values.mean(1)
    error = None
    if len(means) > 1:
        error = float(means.std(ddof=1) / np.sqrt(len(means)))
    elif children > 2:
        matrix = np.zeros((children,) * 2)
        matrix[np.triu_indices(children, k=1)] = values[0]
        error = float(jp.analysis.jackknife(matrix + matrix.T).standard_error)
    if at_chance:
        return {"mean": None, "error": None, "per_seed": means.tolist()}
    return {"mean": float(means.mean()), "error": error, "per_seed": means.tolist()}


def masks_of(opt_state: Any) -> Any:
    """A copy of the masks, which outlives the state."""
    return jax.tree.map(jnp.copy, jp.get_masks(opt_state))


def churn(opt_state: Any, first: Any, previous: Any) -> dict[str, list[float]]:
    """The numbers of the masks in a line of metrics.jsonl; lists are over seeds.

    The sparsity; the overlap (intersection over union) with the first masks of training and with
    the masks of the previous line; and, where the optimizer remembers it (`jp.itop`), R_s, the
    fraction of all prunable weights that was ever in the masks.
    """
    return {name: values.tolist() for name, values in _churn(opt_state, first, previous).items()}


@jax.jit
@jax.vmap
def _churn(opt_state: Any, first: Any, previous: Any) -> dict[str, jax.Array]:
    now = jp.get_masks(opt_state)
    numbers = {
        "sparsity": jp.sparsity(now),
        "overlap_first": jp.overlap(now, first),
        "overlap_previous": jp.overlap(now, previous),
    }
    if optax.tree.get_all_with_path(opt_state, "ever_active"):
        numbers["ever_active"] = 1 - jp.sparsity(jp.dynamic.ever_active(opt_state))
    return numbers
