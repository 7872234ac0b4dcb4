"""Where values come from: positions and random numbers."""

from __future__ import annotations

from typing import Any

from jaxprune.coupling.rules.registry import rule


def _new_shape(step: Any, keep: Any) -> dict[str, Any]:
    behind = len(step.outputs[0]) - len(step.eqn.params["shape"])  # the axes of keys
    return {"shape": keep.shape(step.outputs[0])[behind:]}


@rule("iota", resize=_new_shape)
def iota(read: Any, eqn: Any, operands: Any) -> Any:
    along, shape = eqn.params["dimension"], eqn.params["shape"]
    for axes in operands:  # dynamic shapes
        for axis in axes:
            read.freeze(axis, "positions, of iota")
    return [
        tuple(
            read.frozen(n, "positions, of iota") if i == along else read.fresh(n)
            for i, n in enumerate(shape)
        )
    ]


@rule("random_bits", resize=_new_shape)
def random_bits(read: Any, eqn: Any, operands: Any) -> Any:
    """Bits of smaller arrays are others: where they are drawn, compacted is not masked."""
    for axis in operands[0]:
        read.freeze(axis, "keys of random numbers")
    keys = len(operands[0])
    return [(*operands[0], *map(read.fresh, eqn.outvars[0].aval.shape[keys:]))]


@rule("random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in",
      "random_clone", "threefry2x32")  # fmt: skip
def keys(read: Any, eqn: Any, operands: Any) -> Any:
    return read.freeze_all(eqn, operands, "keys of random numbers")
