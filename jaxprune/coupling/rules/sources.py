"""Where values come from: positions and random numbers."""

from __future__ import annotations

from typing import Any

from jaxprune.programs.primitives import rule


def _new_shape(step: Any, keep: Any) -> dict[str, Any]:
    behind = len(step.outputs[0]) - len(step.eqn.params["shape"])  # the axes of keys
    return {"shape": keep.shape(step.outputs[0])[behind:]}


@rule("iota", resize=_new_shape)
def iota(read: Any, eqn: Any, operands: Any) -> Any:
    """Positions along one axis, which can't be pruned; nothing is known of the others."""
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


def _bits_shape(step: Any, keep: Any) -> dict[str, Any]:
    return {"shape": keep.shape(step.outputs[-1])}


@rule("random_bits", resize=_new_shape)
def random_bits(read: Any, eqn: Any, operands: Any) -> Any:
    """A smaller array gets other bits than a larger one: `exactness` says where that counts."""
    for axis in operands[0]:
        read.freeze(axis, "keys of random numbers")
    keys = len(operands[0])
    return [(*operands[0], *map(read.fresh, eqn.outvars[0].aval.shape[keys:]))]


@rule("rng_bit_generator", resize=_bits_shape)
def rng_bit_generator(read: Any, eqn: Any, operands: Any) -> Any:
    """A key gives the next key and bits."""
    for axis in operands[0]:
        read.freeze(axis, "keys of random numbers")
    return [operands[0], tuple(map(read.fresh, eqn.outvars[1].aval.shape))]


@rule("rng_uniform", resize=_bits_shape)
def rng_uniform(read: Any, eqn: Any, operands: Any) -> Any:
    """Numbers between two scalars."""
    return [tuple(map(read.fresh, eqn.outvars[0].aval.shape))]


@rule("random_gamma")
def random_gamma(read: Any, eqn: Any, operands: Any) -> Any:
    """A number for each entry of the second operand; of the keys each has several."""
    for axis in operands[0]:
        read.freeze(axis, "keys of random numbers")
    return [operands[1]]


@rule("dim_as_value")
def dim_as_value(read: Any, eqn: Any, operands: Any) -> Any:
    """A size that is not known yet, such as that of an exported batch, as a number."""
    return [()]


@rule("random_seed", "random_wrap", "random_unwrap", "random_split", "random_fold_in",
      "random_clone", "threefry2x32")  # fmt: skip
def keys(read: Any, eqn: Any, operands: Any) -> Any:
    """Keys of random numbers can't be pruned."""
    return read.freeze_all(eqn, operands, "keys of random numbers")
