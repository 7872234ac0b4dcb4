"""Reductions, running reductions, sorts and windows."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.expressions import Expr, size
from jaxprune.programs.primitives import rule

OVER_AXES = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or",
    "reduce_xor",
}  # fmt: skip
WINDOW = "a window moves over it"


@rule(*OVER_AXES, zeros="all")
def reduce(read: Any, eqn: Any, operands: Any) -> Any:
    """The axes that are reduced go; the others stay."""
    gone = eqn.params["axes"]
    return [tuple(axis for i, axis in enumerate(operands[0]) if i not in gone)]


@rule("argmax", "argmin")
def argument(read: Any, eqn: Any, operands: Any) -> Any:
    """A result is a place on the axis, so that no entry before it may go."""
    for i in eqn.params["axes"]:
        read.freeze(operands[0][i], "what argmax or argmin finds is a place on it")
    return reduce(read, eqn, operands)


def _freeze_along(read: Any, operands: Any, along: Any, why: str) -> None:
    for axes in operands:
        for i in along:
            read.freeze(axes[i], why)


@rule("cumlogsumexp")
def cumulative(read: Any, eqn: Any, operands: Any) -> Any:
    """Each entry reads those before it, so that none along the axis may go."""
    _freeze_along(read, operands, [eqn.params["axis"]], "a running reduction depends on its order")
    return operands


rule("cumsum", zeros="each")(cumulative)
rule("cumprod", "cummax", "cummin", zeros="all")(cumulative)


@rule("rev", zeros="each")
def reverse(read: Any, eqn: Any, operands: Any) -> Any:
    """An axis that is reversed has its entries in another order, and is frozen."""
    _freeze_along(read, operands, eqn.params["dimensions"], "reversed")
    return operands


@rule("sort", zeros="all")
def sort(read: Any, eqn: Any, operands: Any) -> Any:
    """Operands that are sorted together by the first have the same axes."""
    _freeze_along(read, operands, [eqn.params["dimension"]], "sorted")
    read.unify_all(*operands)
    return operands


@rule("top_k")
def top_k(read: Any, eqn: Any, operands: Any) -> Any:
    """Values and places of the largest entries; no entry of the ranked axis may go."""
    along = eqn.params.get("axis", len(operands[0]) - 1) % len(operands[0])
    _freeze_along(read, operands, [along], "ranked by top_k")
    n = eqn.outvars[0].aval.shape[along]
    best = tuple(
        read.frozen(n, "ranked by top_k") if i == along else a for i, a in enumerate(operands[0])
    )
    return [best] * len(eqn.outvars)


@rule("fft")
def fft(read: Any, eqn: Any, operands: Any) -> Any:
    """Transforms the last axes, of which each result reads every entry."""
    (axes,), shape = operands, eqn.outvars[0].aval.shape
    first = len(axes) - len(eqn.params["fft_lengths"])
    _freeze_along(read, operands, range(first, len(axes)), "transformed by fft")
    return [(*axes[:first], *(read.frozen(n, "transformed by fft") for n in shape[first:]))]


@rule("reduce_window")
def reduce_window(read: Any, eqn: Any, operands: Any) -> Any:
    """Pooling: axes along which the window is one entry, and moves by one, pass."""
    params, arrays = eqn.params, operands[: len(eqn.outvars)]
    rank = len(arrays[0])
    windows = zip(
        params["window_dimensions"],
        params["window_strides"],
        params["padding"],
        params.get("base_dilation") or (1,) * rank,
        strict=True,
    )
    passes = [w == (1, 1, (0, 0), 1) for w in ((a, b, tuple(c), d) for a, b, c, d in windows)]
    results: list[tuple[Expr, ...]] = []
    for axes, var in zip(arrays, eqn.outvars, strict=True):
        read.unify_all(arrays[0], axes)
        _freeze_along(read, [axes], [i for i in range(rank) if not passes[i]], WINDOW)
        triples = zip(axes, passes, var.aval.shape, strict=True)
        results.append(tuple(a if ok else read.frozen(n, WINDOW) for a, ok, n in triples))
    return results


rule("reduce_window_sum", "reduce_window_max", "reduce_window_min", zeros="each")(reduce_window)


@rule("select_and_scatter_add", zeros="first")
def select_and_scatter_add(read: Any, eqn: Any, operands: Any) -> Any:
    """The gradient of max pooling: source (pooled), operand -> like the operand."""
    source, operand = operands
    for i, (small, large) in enumerate(zip(source, operand, strict=True)):
        if size(small) == size(large) and eqn.params["window_dimensions"][i] == 1:
            read.unify(small, large)
        else:
            _freeze_along(read, operands, [i], WINDOW)
    return [operand]
