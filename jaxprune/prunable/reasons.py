"""Why a leaf is no kernel, in words: by its dtype, its rank, its name, or what reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.prunable.layers import layer_shape, visible_stacks
from jaxprune.prunable.layout import Layout
from jaxprune.trees import present_leaves

# What a leaf is by its name, if it is no kernel of any rank.
_NOT_KERNELS = {
    "a bias": re.compile(r".*bias.*", re.IGNORECASE),
    "the scale or shift of a norm": re.compile(r"scale|offset|gamma|beta", re.IGNORECASE),
    "a statistic": re.compile(
        r"((running|moving|ema|batch)_)?(mean|var|variance|count)", re.IGNORECASE
    ),
    "a constant": re.compile(r"(.*_)?mask|freqs_cis|inv_freq", re.IGNORECASE),
    "an embedding": re.compile(
        r".*embed.*|(.*_)?(emb|embs|wte|wpe|pos|position|positions)(_.*)?|pe", re.IGNORECASE
    ),
    "a learned token": re.compile(r"cls|(.*_)?tokens?", re.IGNORECASE),
}
_WEIGHT = re.compile(r"w|weights?|g|gain", re.IGNORECASE)
_NORM = re.compile(r".*norm.*|bn(_?\w)?|ln(_?\w)?", re.IGNORECASE)
_EMBEDDING = re.compile(r".*embed.*|wte|wpe|(.*_)?emb", re.IGNORECASE)
# A report does not tell these.
SMALL, NO_FLOATS, EMPTY = "of less than two axes", "not of real floats", "empty"
_BESIDE_A_BIAS = ("w", "W", "weight", "weights", "kernel")


def why_not(leaf_name: str, leaf: Any, shape: tuple[int, ...], siblings: Mapping = {}) -> str:
    """Why a leaf is no kernel, in words; "" if it is one.

    Args:
      shape: of one layer.
      siblings: the shapes of the leaves beside it, of one layer, by their last names.
    """
    *parents, name = leaf_name.removesuffix("/value").split("/")  # as orbax restores flax.nnx
    parent = parents[-1] if parents else ""
    if not hasattr(leaf, "ndim") or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return NO_FLOATS
    if not leaf.size:
        return EMPTY
    if len(shape) < 2:
        return SMALL
    if "batch_stats" in parents:
        return "a statistic, by its name"
    for what, names in _NOT_KERNELS.items():
        if names.fullmatch(name):
            return f"{what}, by its name"
    # equinox and torch call the scale of a norm and the table of an embedding `weight` too
    if _WEIGHT.fullmatch(name) and _NORM.fullmatch(parent):
        return "the scale of a norm, by its name"
    if _WEIGHT.fullmatch(name) and _EMBEDDING.fullmatch(parent):
        return "an embedding, by its name"
    if name in ("b", "B") and not _is_factor(shape, siblings):
        return "a bias, by its name; it makes no product with an `a` beside it"
    return ""


def _is_factor(b: tuple[int, ...], siblings: Mapping) -> bool:
    """Whether a `b` is a matrix of a product a b, as in low-rank adapters, and no bias.

    Beside a `w` it is one if the product has the shape of `w`.
    """
    a = next((siblings[name] for name in ("a", "A") if name in siblings), None)
    ws = [siblings[name] for name in _BESIDE_A_BIAS if name in siblings]
    if a is None or not ws:
        return a is not None
    if len(a) < 2:
        return False
    products = [(x[-2], y[-1]) for x, y in ((a, b), (b, a)) if x[-1] == y[-2]]
    return any(w[-2:] in products for w in ws)


def stacks_of(named: list[tuple[str, Any]]) -> dict[str, tuple[int, ...]]:
    """The stacked axes of the leaves that are visibly stacks of layers, by name."""
    return visible_stacks({leaf: x.shape for leaf, x in named if hasattr(x, "shape")})


def reasons(
    params: Params,
    stacked: Mapping[str, tuple[int, ...]] | None = None,
    said: Mapping[str, Layout] = {},
) -> dict[str, str]:
    """Why each leaf of `params`, by name, is no kernel; "" if it is one.

    A layout that the user or a program gives counts more than the name.
    """
    named = present_leaves(params)
    stacked = stacks_of(named) if stacked is None else stacked
    shapes: dict[str, tuple[int, ...]] = {
        leaf_name: layer_shape(jnp.shape(leaf), stacked.get(leaf_name, ()))
        for leaf_name, leaf in named
        if hasattr(leaf, "shape")
    }
    beside: dict[str, dict[str, tuple[int, ...]]] = {}
    for leaf_name, shape in shapes.items():
        parent, _, name = leaf_name.rpartition("/")
        beside.setdefault(parent, {})[name] = shape

    def why(leaf_name: str, leaf: Any) -> str:
        shape, layout = shapes.get(leaf_name, ()), said.get(leaf_name, Layout())
        by_name = why_not(leaf_name, leaf, shape, beside.get(leaf_name.rpartition("/")[0], {}))
        if layout.inputs != () and by_name not in (SMALL, NO_FLOATS, EMPTY):
            return ""
        return by_name or layout.why or ""

    return {leaf_name: why(leaf_name, leaf) for leaf_name, leaf in named}
