"""FLOPs by leaf: which matrix products and convolutions of a function read which of its params.

The function is traced on shapes, never run. In its jaxpr every value has an origin:

    a leaf of params, reshaped, cast, masked, sliced, normalized, ...   {leaf: 1}
    leaves concatenated into one array                                  {leaf: its share, ...}
    constants, and products of leaves                                   {}
    anything that depends on an input                                   None

and the FLOPs of a product belong to the leaves that one of its operands came from.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from jaxprune.base import Params
from jaxprune.programs.jaxprs import dot_numbers, leading_experts, scan_ends
from jaxprune.trees import named_leaves, shape_only

Origin = dict[Any, Fraction] | None
_OPAQUE = {"ffi_call", "pure_callback", "io_callback"}


class Flops(NamedTuple):
    """What one call costs; a multiply and an add are 2.

    Attributes:
      leaves: FLOPs by path of a leaf of the params; all are there.
      other: those of products in which no leaf takes part, such as attention scores.
      notes: what was not counted, in words.
    """

    leaves: dict[str, int]
    other: int
    notes: tuple[str, ...]


def count_flops(
    apply_fn: Callable[..., Any], params: Params, *inputs: Any, prunable: Collection[str] = ()
) -> Flops:
    """FLOPs of the matrix products and convolutions of `apply_fn(params, *inputs)`, by leaf.

    Also of those inside `jit`, `vmap`, `remat`, custom derivatives, `shard_map`, `scan` (times its
    length), `cond` (its dearest branch) and `while` (one turn, and a note says so). In a
    `ragged_dot` each row is read by one expert. All else, sums and norms and look-ups, counts
    nothing.

    Args:
      apply_fn: `(params, *inputs) -> Any`, traced and never run.
      params, *inputs: pytrees of arrays or `jax.ShapeDtypeStruct`; only shapes and dtypes matter.
      prunable: paths of leaves. Where a product reads two leaves (a kernel and a learned token) it
        is one of these that is charged, and among equals the largest.

    Raises:
      TypeError: if `apply_fn` can't be called, or an argument is no array.

    >>> import jax.numpy as jnp
    >>> count_flops(lambda p, x: x @ p['w'], {'w': jnp.ones((20, 30))}, jnp.ones((4, 20))).leaves
    {'w': 4800}
    """
    if not callable(apply_fn):
        raise TypeError(
            "apply_fn is a function (params, *inputs), such as lambda params, x: "
            f"model.apply({{'params': params}}, x); got {type(apply_fn).__name__}."
        )
    jaxpr = jax.make_jaxpr(apply_fn)(*jax.tree.map(shape_only, (params, *inputs))).jaxpr
    sizes = {path: math.prod(jnp.shape(w)) for path, w in named_leaves(params) if w is not None}
    origins: list[Origin] = [{path: Fraction(1)} for path in sizes]
    origins += [None] * (len(jaxpr.invars) - len(sizes))
    reader = _Reader({path: (path in prunable, size) for path, size in sizes.items()})
    _, counts = reader.walk(jaxpr, origins)
    leaves = {path: round(counts[path]) for path in sizes}
    return Flops(leaves, round(counts[None]), tuple(reader.notes))


class _Reader:
    """Reads jaxprs: origins of the operands -> origins of the results, and FLOPs by leaf."""

    def __init__(self, rank: dict[str, tuple[bool, int]]):
        self.rank = rank
        self.notes: dict[str, None] = {}  # a set in order

    def walk(self, jaxpr: Jaxpr, origins: Sequence[Origin]) -> tuple[list[Origin], Counter]:
        known = dict(zip(jaxpr.invars, origins, strict=True))
        counts: Counter = Counter()

        def origin(var: Any) -> Origin:  # what is not known is a constant of the jaxpr
            return {} if isinstance(var, Literal) else known.get(var, {})

        for eqn in jaxpr.eqns:
            results, own = self.equation(eqn, [origin(var) for var in eqn.invars])
            known.update(zip(eqn.outvars, results, strict=True))
            counts.update(own)
        return [origin(var) for var in jaxpr.outvars], counts

    def equation(self, eqn: Any, operands: list[Origin]) -> tuple[list[Origin], Counter]:
        kind, inner = eqn.primitive.name, list(jaxprs_in_params(eqn.params))
        if kind in ("dot_general", "ragged_dot_general", "conv_general_dilated"):
            return self.product(eqn, operands)
        control = {"scan": self.scan, "while": self.while_loop, "cond": self.cond}
        if kind in control:
            return control[kind](eqn.params, operands)
        for jaxpr in inner:  # jit, remat, custom_jvp, custom_vjp, custom_vmap, shard_map, ...
            if len(jaxpr.invars) == len(operands):
                results, counts = self.walk(jaxpr, operands)
                axes = eqn.params.get("newly_manual_axes", ())  # of shard_map: each does its part
                shards = math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
                return results, _times(counts, shards)
        if kind in _OPAQUE or any(self.walk(j, [{}] * len(j.invars))[1] for j in inner):
            self.notes[f"the products inside {kind} are not counted"] = None
        if kind == "select_n":
            operands = operands[1:]  # weights stay weights where an input masks them
        result = self.joined(operands)
        if kind == "concatenate" and result:
            result = _shares(operands, [var.aval.size for var in eqn.invars])
        return [result] * len(eqn.outvars), Counter()

    def joined(self, origins: Sequence[Origin]) -> Origin:
        """The origin of a value made of several: input > prunable leaf > larger leaf > constant."""
        if any(origin is None for origin in origins):
            return None
        strength = lambda origin: max((self.rank[path] for path in origin), default=(False, -1))
        return max(origins, key=strength, default={})

    def product(self, eqn: Any, operands: list[Origin]) -> tuple[list[Origin], Counter]:
        is_conv = eqn.primitive.name == "conv_general_dilated"
        flops, operands = _convolution(eqn) if is_conv else _dot(eqn), operands[:2]
        read = self.joined([origin for origin in operands if origin]) or {None: Fraction(1)}
        return [None if None in operands else {}], _times(Counter(read), flops)

    def loop(self, body: Any, consts: list, carry: list, xs: list) -> tuple[list, list, Counter]:
        """The carry, followed round until it settles; the other results; FLOPs of one turn."""
        while True:
            results, counts = self.walk(body.jaxpr, consts + carry + xs)
            after = [self.joined(ways) for ways in zip(carry, results, strict=False)]
            if after == carry:
                return carry, results[len(carry) :], counts
            carry = after

    def scan(self, params: dict, operands: list) -> tuple[list[Origin], Counter]:
        first, last = scan_ends(params)
        parts = operands[:first], operands[first:last], operands[last:]
        carry, ys, counts = self.loop(params["jaxpr"], *parts)
        return carry + ys, _times(counts, params["length"])

    def while_loop(self, params: dict, operands: list) -> tuple[list[Origin], Counter]:
        first = params["cond_nconsts"]
        last = first + params["body_nconsts"]
        body = params["body_jaxpr"]
        carry, _, counts = self.loop(body, operands[first:last], operands[last:], [])
        counts += self.walk(params["cond_jaxpr"].jaxpr, operands[:first] + carry)[1]
        if counts:
            self.notes["a while loop, of unknown length, is counted as one turn"] = None
        return carry, counts

    def cond(self, params: dict, operands: list) -> tuple[list[Origin], Counter]:
        ways = [self.walk(branch.jaxpr, operands[1:]) for branch in params["branches"]]
        results = [self.joined(each) for each in zip(*(way[0] for way in ways), strict=True)]
        return results, max((way[1] for way in ways), key=lambda own: sum(own.values()))


def _shares(origins: Sequence[Any], sizes: Sequence[int]) -> Origin:
    shares = sum((_times(o, n) for o, n in zip(origins, sizes, strict=True)), Counter())
    return {path: Fraction(part, sum(shares.values())) for path, part in shares.items()}


def _dot(eqn: Any) -> int:
    """2 * outputs * inputs of each; of experts each row is read by one."""
    (contracted, _), _ = dot_numbers(eqn)
    shape, results = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape[leading_experts(eqn) :]
    return 2 * math.prod(results) * math.prod(shape[axis] for axis in contracted)


def _convolution(eqn: Any) -> int:
    """2 * outputs * (inputs / groups) * window; the zeros of an input dilation cost nothing."""
    kernel, p = eqn.invars[1].aval.shape, eqn.params
    reads = math.prod(kernel) // max(kernel[p["dimension_numbers"].rhs_spec[0]], 1)
    return 2 * eqn.outvars[0].aval.size * reads // math.prod(p["lhs_dilation"])


def _times(counts: Mapping, n: int) -> Counter:
    return Counter({path: n * flops for path, flops in counts.items()})
