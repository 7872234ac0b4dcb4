"""The names of the arms, the numbers and the figures of `recipes.prune_at_init`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from recipes.common import study
from recipes.common.figures import left, style
from recipes.common.report import Picture

if TYPE_CHECKING:
    from recipes.prune_at_init import Config

ACCURACY, CONTROLS = "plots/weights_left.png", "plots/controls.png"
SHUFFLED, REDRAWN = "shuffled", "redrawn"

Forward = Callable[[Any], jax.Array]


class Kind(NamedTuple):
    """A method at a sparsity, or a control of it."""

    method: str
    sparsity: float
    control: str = ""


def kinds(config: Config) -> list[Kind]:
    """All arms but the dense one."""
    controls = ("", SHUFFLED, REDRAWN) if config.controls else ("",)
    return [Kind(m, s, c) for m in config.method for s in config.sparsity for c in controls]


def highest(config: Config) -> list[Kind]:
    """The methods at the highest sparsity, without controls."""
    return [Kind(method, max(config.sparsity)) for method in config.method]


def name(kind: Kind, config: Config) -> str:
    """The name of an arm, with its sparsity if there are several."""
    at = [f"{100 * kind.sparsity:.10g}%"] if len(config.sparsity) > 1 else []
    return " ".join([kind.method, *at, *filter(None, [kind.control])])


def add_collapse(
    config: Config, outcome: study.Outcome, numbers: dict[str, Any], forward: Forward
) -> None:
    """Adds to each arm the seeds with an empty layer, and the number of weights on paths."""
    for kind in kinds(config):
        own, state = numbers[name(kind, config)], outcome.states[name(kind, config)]
        masks = jp.get_masks(state.opt_state)
        empty = _collapsed(masks)
        own["collapsed"] = np.any(list(empty.values()), axis=0).tolist()
        own["on_paths"] = weights_on_paths(forward, state.params, masks).tolist()


def pictures_of(
    config: Config, outcome: study.Outcome, numbers: dict[str, Any]
) -> dict[str, Picture]:
    """The figures, by their path below the folder."""
    shown = ["dense", *(name(kind, config) for kind in highest(config))]
    curves = study.pictures(outcome._replace(arms={arm: outcome.arms[arm] for arm in shown}))
    drawn = style.looks(["dense", *config.method])
    dense = np.asarray(numbers["dense"]["test_accuracy"]["per_seed"])

    def line(method: str, control: str = "") -> left.Line:
        own = [numbers[name(Kind(method, s, control), config)] for s in config.sparsity]
        return left.Line(
            left=[1 - s for s in config.sparsity],
            accuracy=np.array([n["test_accuracy"]["per_seed"] for n in own]),
            collapsed=np.array([n["collapsed"] for n in own]),
        )

    made = {
        ACCURACY: Picture(
            left.accuracy({m: line(m) for m in config.method}, dense, drawn),
            "Test accuracy of the last step against weights left: mean over seeds; bands from the "
            "worst seed to the best. A cross: a layer kept no weight, in one seed at least.",
        ),
        study.LAYERS: Picture(
            left.layers(layer_lines(config, outcome), drawn),
            "Weights kept in each layer, counted, against weights left in all: mean over seeds; "
            "bands from the lowest to the highest. A cross: the layer kept none, in one seed at "
            "least.",
        ),
        study.CURVES: Picture(
            curves[study.CURVES].png,
            f"At sparsity {max(config.sparsity):g}. {curves[study.CURVES].caption}",
        ),
    }
    if config.controls:
        made[CONTROLS] = Picture(
            left.controls(
                {
                    m: {c or "own masks": line(m, c) for c in ("", SHUFFLED, REDRAWN)}
                    for m in config.method
                },
                dense,
                drawn,
            ),
            "Each method, its masks shuffled within layers, and redrawn weights under its masks: "
            "test accuracy of the last step against weights left, as above.",
        )
    return made


def layer_lines(config: Config, outcome: study.Outcome) -> dict[str, dict[str, style.Curve]]:
    """Layer -> method -> weights left in all, and weights kept there (sparsities, seeds)."""
    lines: dict[str, dict[str, style.Curve]] = {}
    for method in config.method:
        stacks = [
            jp.get_masks(outcome.states[name(Kind(method, s), config)].opt_state)
            for s in config.sparsity
        ]
        kept = [left.kept_by_layer(stack) for stack in stacks]
        for path in kept[0]:
            counts = np.array([k[path] for k in kept])
            lines.setdefault(path, {})[method] = ([1 - s for s in config.sparsity], counts)
    return lines


_collapsed = jax.jit(jax.vmap(jp.at_init.empty_layers))


def weights_on_paths(forward: Forward, params: Any, masks: Any) -> np.ndarray:
    """How many weights each seed of a stack keeps on paths from inputs to outputs: int (seeds,).

    The other weights do nothing: no input reaches them, or they reach no output.

    Reference: Vysogorets and Kempe, 2023, Connectivity Matters: Neural Network Pruning Through the
    Lens of Effective Sparsity.
    """
    return np.asarray(_on_paths(forward, params, masks))


@partial(jax.jit, static_argnums=0)
def _on_paths(forward: Forward, params: Any, masks: Any) -> jax.Array:
    def weight(mask: jax.Array | None, w: jax.Array) -> jax.Array:
        if mask is None:
            return jnp.zeros_like(w)
        # sums keep their size from layer to layer: deep networks neither fade nor overflow
        return mask * (mask.shape[-1] / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1.0))

    def one_seed(params: Any, masks: Any) -> jax.Array:
        ones = jax.tree.map(weight, masks, params, is_leaf=lambda leaf: leaf is None)
        shares = jax.tree.leaves(jp.at_init.flow_shares(forward, ones))
        return jnp.stack([jnp.sum(share > 0, dtype=jnp.int32) for share in shares]).sum()

    return jax.vmap(one_seed)(params, masks)
