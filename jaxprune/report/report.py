"""The result of pruning, layer by layer: a value that prints as a table and draws itself."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params, Sparsities
from jaxprune.masks import like
from jaxprune.programs.bops import Bits, Widths, Work, count_work
from jaxprune.programs.flops import count_flops
from jaxprune.prunable.quantized import dequantized, owners
from jaxprune.prunable.reasons import NO_FLOATS, SMALL, reasons
from jaxprune.prunable.rules import kernels, layers_of
from jaxprune.reparam.coded_size import coded_leaf
from jaxprune.report import rendering
from jaxprune.report.tally import Layer as Layer
from jaxprune.report.tally import check_masks, sum_of, tally, wanted
from jaxprune.trees import named_leaves, present_leaves, quoted

_CODED = "bits: the least that kept values and masks take, coded by how often each is there."


@dataclass(frozen=True, repr=False)
class Report:
    """The result of `report`; it prints as a table.

    Attributes:
      layers: a `Layer` for each prunable leaf, in their order, Conv_2 before Conv_10.
      prunable: the sum of `layers`.
      never_pruned: the sum of all other leaves of floats.
      activations: no weights; the FLOPs of products that read no leaf, such as attention scores.
      total: the sum of these three.
      notes: remarks on the numbers.
    """

    layers: tuple[Layer, ...]
    prunable: Layer
    never_pruned: Layer
    activations: Layer
    total: Layer
    notes: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Layers that keep no weight, and weights outside their mask that are not zero."""
        dead = [(layer.path, None) for layer in self.layers if layer.total and not layer.kept]
        leaky = [(layer.path, None) for layer in self.layers if layer.outside]
        texts = []
        if dead:
            texts.append(
                f"no weight at all is kept in {quoted(dead)}: dead layers. Lower the sparsity, "
                "exempt them with per_layer or prunable=..., or use lamp scores."
            )
        if leaky:
            texts.append(
                f"{self.prunable.outside:,} weights are not zero where their mask is False, in "
                f"{quoted(leaky, most=4)}. Is sparsify last in the optax.chain? Where masks were "
                "never applied, or a pruned weight was nan or inf: params = apply_masks(params, "
                "masks)."
            )
        return tuple(texts)

    def to_dict(self) -> dict[str, Any]:
        """The report in dicts, lists, strings and numbers, for JSON."""
        sums = ("prunable", "never_pruned", "activations", "total")
        return {
            "layers": [layer.to_dict() for layer in self.layers],
            **{name: getattr(self, name).to_dict() for name in sums},
            "warnings": list(self.warnings),
            "notes": list(self.notes),
        }

    def plot(self, ax: Any = None) -> Any:
        """The density of each layer, its target as a mark: a matplotlib `Figure`.

        Bars from zero; dots on a logarithmic axis where densities differ more than tenfold.

        Args:
          ax: matplotlib axes to draw into; None for a new figure.

        Raises:
          ImportError: without matplotlib.
        """
        return rendering.density_by_layer(self, ax)

    def __repr__(self) -> str:
        return rendering.table(self)


def report(
    params: Params,
    masks: Masks,
    apply_fn: Callable[..., Any] | None = None,
    *inputs: Any,
    target: Sparsities = None,
    ever_active: Masks = None,
    prunable: Callable[[Params], Params] = kernels,
    bits: Bits = None,
    coded: bool = False,
) -> Report:
    """The weights kept of each layer and of all, the target, FLOPs, BOPs and sizes: a `Report`.

    A leaf of rank 2 or more without a mask is named at the end, with the reason.

    FLOPs count matrix products and convolutions (`jaxprune.programs.flops`). Sparse FLOPs are what
    a kernel that skips zeros would do: masks simulate sparsity, and make nothing faster. BOPs are
    the bit operations of such a kernel with weights and inputs of so many `bits`.

    Args:
      params: pytree of arrays. A leading axis of seeds counts like other axes: the seeds add up.
        A kernel that another library has quantized is one leaf, at the path of the node.
      masks: like the params, bool, None where never pruned.
      apply_fn: `(params, *inputs) -> Any`, traced on shapes and never run; None counts no FLOPs.
      *inputs: its example inputs, arrays or `jax.ShapeDtypeStruct`.
      target: sparsities, as the allocation returned them (floats are fractions, ints numbers of
        weights); or one number, for all prunable weights together.
      ever_active: which weights were ever kept, from `dynamic.ever_active(opt_state)`: the column
        `ever` is the R_s of ITOP.
      prunable: of these masks. Where it has layers in the place of a stack, each is a row.
      bits: of weights and inputs, as for `count_bops`, which counts the column `BOPs`; it needs
        `apply_fn`. None for no BOPs.
      coded: whether there is a column `bits`, of the least that the kept values and the masks take
        by how often each is there: `reparam.coded_size`.

    Raises:
      ValueError: if masks or target belong to other params, a target is no sparsity, or every
        mask is None.
      TypeError: if a mask is not bool, or values are not known, as under `jit`.

    Warns:
      UserWarning: if a layer keeps no weight, or weights are not zero where their mask is False.

    >>> params = {'kernel': jnp.array([[3., 0., 0.], [0., -4., 0.]]), 'bias': jnp.ones(3)}
    >>> masks = {'kernel': params['kernel'] != 0, 'bias': None}
    >>> report(params, masks, target={'kernel': 0.5, 'bias': None})
    layer             shape  kept  total  sparsity  target  +/-
    -----------------------------------------------------------
    kernel              2x3     2      6    0.6667  0.5000   -1
    -----------------------------------------------------------
    prunable                    2      6    0.6667  0.5000   -1
    never pruned (1)            3      3    0.0000
    total                       5      9    0.4444
    """
    check_masks(masks)
    given, params = params, dequantized(params)
    aligned = zip(named_leaves(params), named_leaves(like(masks, params)), strict=True)
    leaves = [(path, leaf, mask) for (path, leaf), (_, mask) in aligned if leaf is not None]
    in_stacks = {path: (leaf, mask) for path, leaf, mask in leaves if mask is not None}
    if not in_stacks:
        raise ValueError("there is nothing to report: the mask of every leaf is None.")
    counted = (given, in_stacks, apply_fn, inputs)
    flops, other, notes = _flops(*counted)
    bops_of, other_bops, more = _bops(*counted, bits)
    stacks = layers_of(prunable(params))
    masked, stack_of = _in_layers(in_stacks, stacks)
    for path, stack in stack_of.items():
        if stack in flops:
            size = max(in_stacks[stack][1].size, 1)
            flops[path] = flops[stack] * masked[path][1].size // size
    counts = tally(masked)
    ever = _ever_active(ever_active, params, stacks)
    sizes = {path: m.size for path, (_, m) in masked.items()}
    targets, target_of_all = wanted(_of_layers(target, stack_of), sizes)

    def layer(path: str, leaf: Any) -> Layer:
        shape, size, dense = np.shape(leaf), np.size(leaf), flops.get(path)
        n_kept, outside = counts.get(path, (size, 0))
        sparse = None if dense is None else dense * n_kept // max(size, 1)
        active = ever.get(path)
        stack = stack_of.get(path, path)
        fraction = size / max(np.size(in_stacks[stack][0]), 1) if path in stack_of else 1.0
        bops = None if bops_of is None else bops_of(stack, fraction, n_kept / max(size, 1))
        stored = coded_leaf(path, *masked.get(path, (leaf,))).bits if coded else None
        counted = (n_kept, size, targets.get(path), outside, active, dense, sparse, bops, stored)
        return Layer(path, shape, *counted)

    layers = tuple(layer(path, masked[path][0]) for path in _in_order(masked))
    others = [(path, leaf) for path, leaf, mask in leaves if mask is None]
    rest = [layer(path, leaf) for path, leaf in others if _is_float(leaf) or flops.get(path)]
    of_none = {"flops": other, "sparse_flops": other, "bops": other_bops}
    activations = Layer("no weights", None, 0, 0, **of_none, coded_bits=0 if coded else None)
    more += (_CODED,) if coded else ()
    result = Report(
        layers,
        prunable=replace(sum_of("prunable", layers), target_kept=target_of_all),
        never_pruned=sum_of(f"never pruned ({len(rest)})", rest),
        activations=activations,
        total=sum_of("total", [*layers, *rest, activations]),
        notes=(*notes, *more, *_left_out(params, {path for path, _ in others})),
    )
    for warning in result.warnings:
        warnings.warn(warning, stacklevel=2)
    return result


def _in_layers(
    masked: Mapping[str, tuple], stacks: Mapping[str, dict[str, Callable[[Any], Any]]]
) -> tuple[dict[str, tuple], dict[str, str]]:
    """The masked leaves, layers in place of stacks, by path; and the stack of each layer."""
    rows: dict[str, tuple] = {}
    stack_of: dict[str, str] = {}
    for path, arrays in masked.items():
        for layer, take in stacks.get(path, {path: lambda x: x}).items():
            rows[layer] = tuple(take(x) for x in arrays)
            stack_of |= {layer: path} if path in stacks else {}
    return rows, stack_of


def _of_layers(target: Sparsities, stack_of: Mapping[str, str]) -> Sparsities:
    """A target with the sparsity of a stack for each of its layers."""
    given = dict(present_leaves(target))
    shared = {layer: given[stack] for layer, stack in stack_of.items() if stack in given}
    if not any(isinstance(value, float) for value in shared.values()):
        return target
    rest = {path: value for path, value in given.items() if path not in stack_of.values()}
    return rest | shared


def _left_out(params: Params, without: Collection[str]) -> list[str]:
    """A note of the leaves of rank 2 or more without a mask, with the reasons."""
    by_reason: dict[str, list[tuple[str, None]]] = {}
    for path, why in reasons(params).items():
        if path in without and why not in (SMALL, NO_FLOATS):
            by_reason.setdefault(why or "a kernel, not chosen", []).append((path, None))
    texts = [f"{quoted(leaves, most=4)} ({why})" for why, leaves in by_reason.items()]
    return [f"never pruned: {'; '.join(texts)}."] if texts else []


def _ever_active(masks: Masks, params: Params, stacks: Mapping) -> dict[str, int]:
    """How many weights are True, by path."""
    if masks is None:
        return {}
    check_masks(masks)
    counted = {path: (m, m) for path, m in present_leaves(like(masks, params))}
    rows, _ = _in_layers(counted, stacks)
    return {path: n for path, (n, _) in tally(rows).items()}


def _in_order(paths: Iterable[str]) -> list[str]:
    """The paths in their order; where a dict has sorted them, Conv_2 before Conv_10."""
    paths = list(paths)
    if paths != sorted(paths, key=lambda path: path.split("/")):
        return paths
    parts = lambda path: re.split(r"(\d+)", path)  # every other part is a number
    return sorted(paths, key=lambda path: [int(p) if p.isdecimal() else p for p in parts(path)])


def _flops(params: Params, masked: Mapping, apply_fn: Any, inputs: tuple) -> tuple:
    """FLOPs by path, FLOPs that belong to no path, and notes; nothing without a function."""
    if apply_fn is None:
        return {}, None, ()
    owner = owners(params)
    prunable = [leaf for leaf, weight in owner.items() if weight in masked]
    flops = count_flops(apply_fn, params, *inputs, prunable=prunable)
    by_weight: Counter = Counter()
    for leaf, n in flops.leaves.items():
        by_weight[owner[leaf]] += n
    seen = [f"{jnp.result_type(x)}{list(np.shape(x))}" for x in jax.tree.leaves(inputs)]
    on = ", ".join(seen) or "no inputs"
    about = f"FLOPs of one call on {on}; sparse: what a kernel that skips zeros would do."
    return dict(by_weight), flops.other, (about, *flops.notes)


def _bops(params: Params, masked: Mapping, apply_fn: Any, inputs: tuple, bits: Bits) -> tuple:
    """`(path, fraction of it, density) -> BOPs`, BOPs that belong to no path, and notes."""
    if bits is None:
        return None, None, ()
    if apply_fn is None:
        raise ValueError(
            "report counts bit operations on a program: give it apply_fn and inputs too, as in "
            "report(params, masks, apply_fn, x, bits=8)."
        )
    owner = owners(params)
    widths = Widths(bits, [*owner.values()])
    prunable = [leaf for leaf, weight in owner.items() if weight in masked]
    counted, _ = count_work(apply_fn, params, *inputs, prunable=prunable)
    none = Work(0.0, 0.0)
    work: dict[str | None, Work] = {}
    for leaf, one in counted.items():
        weight = None if leaf is None else owner[leaf]
        work[weight] = work.get(weight, none).plus(one)

    def of(path: str, fraction: float, density: float) -> float:
        return work.get(path, none).part(fraction).bops(*widths.of(path), density)

    return of, work.get(None, none).bops(*widths.of(None)), (f"BOPs {widths}.",)


def _is_float(leaf: Any) -> bool:
    """Whether a leaf is a parameter, and no counter or random key."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)
