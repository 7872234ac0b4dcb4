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

from jaxprune.base import Params
from jaxprune.programs.interpret import enter, held, programs, walk
from jaxprune.programs.primitives import rule_of, sides
from jaxprune.trees import present_leaves, shape_only

Origin = dict[Any, Fraction] | None
_OPAQUE = {"ffi_call", "pure_callback", "io_callback"}


class Flops(NamedTuple):
    """What one call costs; a multiply and an add are 2.

    Attributes:
      leaves: FLOPs by path of a leaf of the params; all are there.
      other: FLOPs of products in which no leaf takes part, such as attention scores.
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
      ValueError: if the size of an argument is symbolic.

    >>> import jax.numpy as jnp
    >>> count_flops(lambda p, x: x @ p['w'], {'w': jnp.ones((20, 30))}, jnp.ones((4, 20))).leaves
    {'w': 4800}
    """
    products, notes = read_products(apply_fn, params, *inputs, prunable=prunable)
    counts: Counter = Counter()
    for (path, _), flops in products.items():
        counts[path] += flops
    leaves = {path: round(counts[path]) for path, _ in present_leaves(params)}
    return Flops(leaves, round(counts[None]), notes)


def read_products(
    apply_fn: Callable[..., Any], params: Params, *inputs: Any, prunable: Collection[str] = ()
) -> tuple[Counter, tuple[str, ...]]:
    """The FLOPs of `count_flops` by (path, terms), and the notes.

    The path is None where no leaf takes part. `terms` is how many products a sum adds up: the
    inputs of a dense layer, the window times the input channels of a convolution.
    """
    if not callable(apply_fn):
        raise TypeError(
            "apply_fn is a function (params, *inputs), such as lambda params, x: "
            f"model.apply({{'params': params}}, x); got {type(apply_fn).__name__}."
        )
    shapes = jax.tree.map(shape_only, (params, *inputs))
    check_sizes("count_flops", shapes)
    closed = jax.make_jaxpr(apply_fn)(*shapes)
    sizes = {path: math.prod(jnp.shape(w)) for path, w in present_leaves(params)}
    origins: list[Origin] = [{path: Fraction(1)} for path in sizes]
    origins += [None] * (len(closed.jaxpr.invars) - len(sizes))
    reader = _Reader({path: (path in prunable, size) for path, size in sizes.items()})
    _, counts = reader.read(closed, origins)
    return counts, tuple(reader.notes)


def check_sizes(what: str, shapes: Any) -> None:
    """ValueError if a size is symbolic: costs are numbers."""
    for path, x in present_leaves(shapes):
        if not all(isinstance(n, int) for n in jnp.shape(x)):
            raise ValueError(
                f"{what} counts costs of arrays of known sizes; '{path}' has the shape {x.shape}. "
                "Count, analyze and pick on an example batch: the compacted function can be "
                "exported with a batch of symbolic size all the same."
            )


class _Reader:
    """Reads jaxprs: origins of the operands -> origins of the results, and FLOPs by (leaf, terms).

    The terms are those of one sum of the product.
    """

    def __init__(self, rank: dict[str, tuple[bool, int]]):
        self.rank = rank
        self.notes: dict[str, None] = {}  # a set in order

    def read(self, program: Any, origins: Sequence[Origin]) -> tuple[list[Origin], Counter]:
        counts: Counter = Counter()

        def equation(eqn: Any, operands: list[Origin]) -> list[Origin]:
            results, flops = self.equation(eqn, operands)
            if flops:
                counts.update(flops)
            return results

        return walk(program, origins, equation, lambda x, atom: {}), counts

    def equation(self, eqn: Any, operands: list[Origin]) -> tuple[list[Origin], Counter]:
        if costs(eqn):
            shapes = ([atom.aval.shape for atom in atoms] for atoms in (eqn.invars, eqn.outvars))
            factor, sizes, divisor = product_of(eqn, *shapes)
            read = self.joined([origin for origin in operands[:2] if origin]) or {None: Fraction(1)}
            flops = factor * math.prod(sizes) // divisor
            terms = Fraction(flops, 2 * max(eqn.outvars[0].aval.size, 1))
            counts = Counter({(path, terms): n for path, n in _times(read, flops).items()})
            return [None if None in operands[:2] else {}], counts
        jaxprs = held(eqn)
        inner = programs(eqn) if jaxprs else []
        if inner:
            return self.inner(eqn, inner, operands)
        kind = eqn.primitive.name
        inside = (self.read(each, [{}] * len(each.jaxpr.invars))[1] for each in jaxprs)
        if kind in _OPAQUE or any(inside):
            self.notes[f"the products inside {kind} are not counted"] = None
        if kind == "select_n":
            operands = operands[1:]  # weights stay weights where an input masks them
        result = self.joined(operands)
        if kind == "concatenate" and result:
            result = _shares(operands, [var.aval.size for var in eqn.invars])
        return [result] * len(eqn.outvars), Counter()

    def inner(self, eqn: Any, inner: list[Any], operands: list[Origin]) -> tuple[list, Counter]:
        """A scan costs its turns, a cond its dearest branch, a while one turn; and so on."""
        counts: dict[int, Counter] = {}

        def run(program: Any, origins: list[Origin]) -> list[Origin]:
            results, counts[id(program)] = self.read(program, origins)  # the last turn is right
            return results

        results = enter(eqn, inner, operands, run, self.joined)
        kind = eqn.primitive.name
        ways = [counts[id(program)] for program in inner]
        if kind == "cond":
            return results, max(ways, key=lambda flops: sum(flops.values()))
        total = sum(ways, Counter())
        if kind == "while" and total:
            self.notes["a while loop, of unknown length, is counted as one turn"] = None
        return results, _times(total, turns(eqn))

    def joined(self, origins: Sequence[Origin]) -> Origin:
        """The origin of a value made of several: input > prunable leaf > larger leaf > constant."""
        if any(origin is None for origin in origins):
            return None
        strength = lambda origin: max((self.rank[path] for path in origin), default=(False, -1))
        return max(origins, key=strength, default={})


class Product(NamedTuple):
    """factor x the product of the sizes of `axes` / divisor FLOPs."""

    factor: int
    axes: tuple[Any, ...]
    divisor: int = 1


def costs(eqn: Any) -> bool:
    """Whether an equation costs FLOPs by itself, apart from the programs that it holds."""
    rule = rule_of(eqn)
    return rule.flops is not None or rule.product is not None


def product_of(eqn: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Product:
    """The FLOPs of an equation that `costs`, by the rule of its primitive.

    Args:
      inputs, outputs: the shapes of its operands and results; or their axes, and the product is
        of axes.
    """
    flops, product = rule_of(eqn).flops, sides(eqn)
    if flops is not None:
        factors = tuple(flops(eqn, inputs, outputs))
    elif product is not None:  # a multiply and an add for each term of each sum
        factors = 2, *outputs[0], *(inputs[0][i] for i in product[0].contracted)
    is_number = lambda n: hasattr(n, "numerator")  # an int or a Fraction, and no axis
    number = math.prod(filter(is_number, factors))
    axes = tuple(n for n in factors if not is_number(n))
    return Product(number.numerator, axes, number.denominator)


def turns(eqn: Any) -> int:
    """How often an equation runs the program that it holds: of a while loop, once is known."""
    axes = eqn.params.get("newly_manual_axes", ())  # of shard_map: each device does its part
    shards = math.prod(eqn.params["mesh"].shape[axis] for axis in axes)
    return shards * (eqn.params["length"] if eqn.primitive.name == "scan" else 1)


def _shares(origins: Sequence[Any], sizes: Sequence[int]) -> Origin:
    shares = sum((_times(o, n) for o, n in zip(origins, sizes, strict=True)), Counter())
    return {path: Fraction(part, sum(shares.values())) for path, part in shares.items()}


def _times(counts: Mapping, n: int) -> Counter:
    return Counter({path: n * flops for path, flops in counts.items()})
