"""A program that is run with some of its kernels in another form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
from jax import lax

from jaxprune.programs.interpret import CALLS, bind, line_of, programs, scan_parts, walk
from jaxprune.programs.primitives import sides
from jaxprune.prunable.layout import Layout
from jaxprune.sharding import automatic

# results with the entries of the kernel in their places
CASTS = ("convert_element_type", "copy", "sharding_constraint")
PRODUCTS = ("dot_general", "conv_general_dilated")


@dataclass(frozen=True)
class Held:
    """A kernel in the place of an operand.

    Attributes:
      name: of its leaf.
      dtype: of the operand; a program may cast the leaf.
      axes: the axes of the leaf, in the order of the operand; without 0 in a layer of a stack.
      form: what multiplies in its place; a scan steps over the arrays of a form.
    """

    name: str
    dtype: Any
    axes: tuple[int, ...]
    form: Any = field(default=None, compare=False)

    def layer(self, form: Any) -> Held:
        """A layer of a stack."""
        return replace(self, axes=self.axes[1:], form=form)


@dataclass(frozen=True)
class Read:
    """An equation that reads a kernel.

    Attributes:
      why: None for a product; else the reason why the kernel can't have another form.
      layout: the axes of the leaf that the product contracts, and the others; None with a `why`.
      eqn, place, kernel: the product, the place of the kernel among its operands, and the kernel.
    """

    name: str
    line: str
    why: str | None
    layout: Layout | None = None
    eqn: Any = None
    place: int = 1
    kernel: Any = None

    @property
    def rows(self) -> int:
        """The rows of the other operand, (rows, in), at the traced shapes."""
        if self.eqn is None:
            return 0
        kernel, y = self.eqn.invars[self.place].aval, self.eqn.outvars[0].aval
        outputs = [kernel.shape[self.kernel.axes.index(i)] for i in self.layout.outputs]  # type: ignore[union-attr]
        return y.size // max(math.prod(outputs), 1)

    @property
    def window(self) -> tuple[int, ...]:
        """Of a convolution, if it is larger than one entry; else ()."""
        if self.eqn is None or self.eqn.primitive.name == "dot_general":
            return ()
        shape = self.eqn.invars[1].aval.shape
        window = tuple(shape[i] for i in self.eqn.params["dimension_numbers"].rhs_spec[2:])
        return window if math.prod(window) > 1 else ()

    @property
    def stacked(self) -> bool:
        """Whether it reads a layer of a stack."""
        return self.eqn is not None and 0 not in self.kernel.axes

    @property
    def view(self) -> Any:
        """Equal for two products that may have one form."""
        return self.layout, self.window, self.stacked


Multiply = Callable[[Read, jax.Array], jax.Array]  # a product, its other operand -> its result


def run(program: Any, operands: list[Any], multiply: Multiply) -> list[Any]:
    """The results of a program; `multiply` makes the products with operands that are `Held`.

    Raises:
      ValueError: if an equation reads a kernel in another way; it names the line.
    """

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        if not any(isinstance(value, Held) for value in values):
            return bind(eqn, values)
        if eqn.primitive.name in CALLS:
            return run(programs(eqn)[0], values, multiply)
        if eqn.primitive.name == "scan" and not carried(eqn, values):
            return _scan(eqn, values, multiply)
        if moved := still_held(eqn, values):
            return [moved]
        read = read_by(eqn, values)
        if read.why:
            raise ValueError(f"'{read.name}' {read.why}{read.line}")
        y = _multiplied(read, values[1 - read.place], multiply)
        return [lax.convert_element_type(y, eqn.outvars[0].aval.dtype)]

    results = walk(program, operands, equation, lambda x, atom: x)
    for result in results:
        if isinstance(result, Held):
            raise ValueError(f"'{result.name}' is a result of the function")
    return results


def _multiplied(read: Read, x: jax.Array, multiply: Multiply) -> jax.Array:
    """A product, with automatic axes where the dense product has explicit axes.

    Forms gather, sort and split axes, for which explicit axes have no rule.
    """

    def product(x: jax.Array, form: Any) -> jax.Array:
        return multiply(replace(read, kernel=replace(read.kernel, form=form)), x)

    y = read.eqn.outvars[0].aval
    dense = jax.ShapeDtypeStruct(y.shape, y.dtype, sharding=y.sharding)
    return automatic(product, dense)(x, read.kernel.form)


def _scan(eqn: Any, values: list[Any], multiply: Multiply) -> list[Any]:
    """The results of a scan over stacks of kernels, or with the same kernels in each turn."""
    consts, carry, xs = scan_parts(eqn, values)
    body, params = programs(eqn)[0], eqn.params

    def turn(carry: list[Any], arrays: list[Any]) -> tuple[list[Any], list[Any]]:
        layers = [x.layer(a) if isinstance(x, Held) else a for x, a in zip(xs, arrays, strict=True)]
        results = run(body, [*consts, *carry, *layers], multiply)
        return results[: len(carry)], results[len(carry) :]

    arrays = [x.form if isinstance(x, Held) else x for x in xs]
    how = {name: params[name] for name in ("length", "reverse", "unroll")}
    carry, stacked = lax.scan(turn, carry, arrays, **how)
    return [*carry, *stacked]


def reads(program: Any, operands: list[Any]) -> list[Read]:
    """All equations that read operands which are `Held`; the others may be anything."""
    found: list[Read] = []

    def equation(eqn: Any, values: list[Any]) -> list[Any]:
        results: list[Any] = [None] * len(eqn.outvars)
        if not any(isinstance(value, Held) for value in values):
            return results
        if eqn.primitive.name in CALLS:
            return walk(programs(eqn)[0], values, equation, lambda x, atom: None)
        if eqn.primitive.name == "scan" and not carried(eqn, values):
            consts, carry, xs = scan_parts(eqn, values)
            layers = [x and x.layer(None) for x in xs]
            last = walk(
                programs(eqn)[0], [*consts, *carry, *layers], equation, lambda x, atom: None
            )
            found.extend(result_of(x) for x in last if isinstance(x, Held))
            return results
        if moved := still_held(eqn, values):
            return [moved]
        read = read_by(eqn, values)
        found.extend(replace(read, name=x.name) for x in values if isinstance(x, Held))
        return results

    last = walk(program, operands, equation, lambda x, atom: None)
    return [*found, *(result_of(x) for x in last if isinstance(x, Held))]


def result_of(kernel: Held) -> Read:
    return Read(kernel.name, "", "is a result of the function")


def carried(eqn: Any, values: list[Any]) -> bool:
    """Whether a kernel is in the carry of a scan, or stepped over along another axis than 0."""
    _, carry, xs = scan_parts(eqn, values)
    return any(isinstance(x, Held) for x in carry) or any(
        isinstance(x, Held) and x.axes[:1] != (0,) for x in xs
    )


def still_held(eqn: Any, values: list[Any]) -> Held | None:
    """The kernel with its axes as the result of an equation has them, where it only moves them."""
    (kernel, *others), (result, *_) = values, eqn.outvars
    if others or not isinstance(kernel, Held):
        return None
    if eqn.primitive.name in CASTS:
        return replace(kernel, dtype=result.aval.dtype)
    if eqn.primitive.name == "transpose":
        return replace(kernel, axes=tuple(kernel.axes[i] for i in eqn.params["permutation"]))
    return None


def read_by(eqn: Any, values: list[Any]) -> Read:
    """How an equation reads a kernel, an operand that is `Held`."""
    places = [i for i, value in enumerate(values) if isinstance(value, Held)]
    place, kind = places[0], eqn.primitive.name
    name, axes, line = values[place].name, values[place].axes, line_of(eqn)

    def refused(why: str) -> Read:
        return Read(name, line, why)

    product = sides(eqn) if kind in PRODUCTS else None
    if product is None:
        return refused(f"is read by {kind}, which is no product")
    if len(places) != 1:
        return refused("is multiplied with another kernel in blocks")
    if kind == "conv_general_dilated":
        if why := _not_convolved(eqn, place):
            return refused(why)
        out, channels, *window = eqn.params["dimension_numbers"].rhs_spec
        inputs, outputs = [axes[i] for i in (*window, channels)], [axes[out]]
    else:
        if product[place].batch:
            return refused("has an axis that the inputs have too, such as one of experts")
        inputs = sorted(axes[i] for i in product[place].contracted)
        outputs = sorted({*axes} - {*inputs})
        if not inputs or not outputs:
            return refused("has no axis of inputs, or none of outputs, in a product")
    layout = Layout(tuple(inputs), tuple(outputs))
    return Read(name, line, None, layout, eqn, place, values[place])


def _not_convolved(eqn: Any, place: int) -> str | None:
    params = eqn.params
    if place != 1:
        return "is the image of a convolution"
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return "is the kernel of a convolution of groups"
    if {*params["lhs_dilation"]} - {1}:
        return "is the kernel of a transposed convolution"
    return None


def in_words(read: Read) -> str:
    """How a product reads a leaf, for messages."""
    axes = lambda axes: ", ".join(map(str, axes))
    inputs, outputs = read.layout.inputs, read.layout.outputs  # type: ignore[union-attr]
    return f"with axes {axes(inputs)} as inputs and {axes(outputs)} as outputs{read.line}"


def product(read: Read, x: jax.Array, multiply: Callable[..., jax.Array]) -> jax.Array:
    """The result of a dot_general; `multiply(rows, **how)` is (n, in) -> (n, out).

    Inputs and outputs are in the order of the axes of the leaf.
    """
    eqn, place, axes = read.eqn, read.place, read.kernel.axes
    side, other = sides(eqn)[place], sides(eqn)[1 - place]  # type: ignore[index]
    shape = eqn.invars[place].aval.shape
    pairs = zip((axes[i] for i in side.contracted), other.contracted, strict=True)
    contracted = [i for _, i in sorted(pairs)]
    rest = [i for i in range(x.ndim) if i not in contracted]
    free = [i for i in range(len(axes)) if i not in side.contracted]
    ordered = sorted(free, key=lambda i: axes[i])
    sizes = [x.shape[i] for i in rest]
    rows = x.transpose([*rest, *contracted]).reshape(math.prod(sizes), -1)
    how = {name: eqn.params[name] for name in ("precision", "preferred_element_type")}
    y = multiply(rows, **how).reshape(*sizes, *(shape[i] for i in ordered))
    of_x, of_kernel = list(range(len(rest))), [len(rest) + ordered.index(i) for i in free]
    return y.transpose([*of_x, *of_kernel] if place == 1 else [*of_kernel, *of_x])
