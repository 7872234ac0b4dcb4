"""`fast`: a function with masks, each product in the form that is fastest here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Masks, Params, is_known
from jaxprune.fast.convolution import convolve
from jaxprune.fast.forms import FORMS, Candidate, candidates, of_window
from jaxprune.fast.program import Held, Read, in_words, product, reads, run
from jaxprune.fast.timing import Product, times
from jaxprune.masks import apply_masks, like
from jaxprune.programs.interpret import bind
from jaxprune.prunable.layout import as_matrix
from jaxprune.sharding import explicit_sharding, on_all_devices
from jaxprune.trees import named_leaves, present_leaves, shape_only

PAYS = 1.1  # dense time / time that a form must reach: less may be noise
COLUMNS = ("leaf", "pattern", "density", "rows", "form", "ratio", "others")


class Choice(NamedTuple):
    """A row of the table.

    Attributes:
      leaf: the name of a leaf that has a mask.
      pattern: what its mask keeps together, in words.
      density: the fraction of weights that are kept.
      rows: of the inputs of its largest product.
      form: in words; "dense" where nothing is faster.
      ratio: dense time / time of the form, 1.0 for dense.
      others: why it is no other form: their ratios, or why there can be none.
    """

    leaf: str
    pattern: str
    density: float
    rows: int
    form: str
    ratio: float
    others: str


class Fast(NamedTuple):
    """A network with other products: `network.fn(network.params, *args)`; printed as a table."""

    params: Params
    fn: Callable[..., Any]

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The rows of the table."""
        return self.fn.choices  # type: ignore[attr-defined]

    def __str__(self) -> str:
        rows = [COLUMNS, *(_cells(choice) for choice in self.choices)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def fast(
    fn: Callable[..., Any],
    params: Params,
    masks: Masks,
    *args: Any,
    rounds: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> Fast:
    """The masked function in its fastest form on this machine, at the shapes of `args`.

        network = jp.fast.fast(apply, params, masks, x)
        print(network)
        network.fn(network.params, x)   # = apply(apply_masks(params, masks), x), to rounding

    The program of `fn` is read. Each product with a masked kernel is timed dense and in the forms
    that its mask allows: blocks, gathered by rows or by columns, or unrolled; single weights by
    outputs (BCSR); cut to the inputs and outputs in use. A form is taken if it is at least 1.1
    times as fast as dense; else the kernel stays dense, and the table says why. The result works
    under `jit`, `vmap` and `grad`. It takes inputs of other batch sizes, also sharded along the
    batch, by automatic or by explicit axes. A kernel in another form lies whole on every device.

    A product is what contracts some axes of the kernel and leaves the others: x @ kernel, x @
    kernel.T, kernels of attention, 1x1 convolutions. A convolution with a window has other forms:
    products of blocks with slices of the shifted image, and a smaller convolution. Layers that a
    `lax.scan` (`nn.scan`) steps over have one form, blocks with as many slots in each layer.

    Args:
      fn: `(params, *args) -> Any`.
      params: pytree of arrays.
      masks: bool, like `params`, None where never pruned; known, not traced.
      args: examples of the inputs, arrays or `jax.ShapeDtypeStruct`. Their batch size is the one
        that is timed.
      rounds: how often each form is timed.
      clock: seconds; `time.process_time` where other processes keep the machine busy.

    Returns:
      `(params, fn)`, as a `Fast`. Kernels in another form are pytrees in the place of the array.

    Raises:
      ValueError: if masks and params do not fit, or are traced, or no leaf has a mask.
    """
    aligned = dict(present_leaves(like(masks, params)))
    if not aligned:
        raise ValueError(
            "fast: there are no masks, every leaf is None. Give the masks of select, or "
            "get_masks(opt_state)."
        )
    for name, mask in aligned.items():
        if not is_known((mask, dict(named_leaves(params))[name])):
            raise ValueError(
                f"fast: the mask and the weights of '{name}' must be known: forms are made of "
                "them and timed. Call fast outside of jit and vmap; network.fn may go into them. "
                "For masks that move in training: jp.fast.block_training."
            )
    masked = apply_masks(params, masks)
    leaves = dict(present_leaves(masked))
    found = _reads(fn, masked, aligned, args)
    forms: dict[str, Any] = {}
    choices = []
    for name, mask in aligned.items():
        form, choice = _chosen(
            name, leaves[name], np.asarray(mask), found.get(name, []), rounds, clock
        )
        choices.append(choice)
        if form is not None:
            forms[name] = form
    treedef = jax.tree.structure(masked)
    new = [forms.get(name, leaf) for name, leaf in leaves.items()]
    shapes = {name: _shape(leaves[name]) for name in forms}
    return Fast(
        jax.tree.unflatten(treedef, new), _Replayed(fn, treedef, tuple(leaves), shapes, choices)
    )


class _Replayed:
    """The function of params in other forms."""

    def __init__(self, fn: Any, treedef: Any, names: tuple[str, ...], shapes: Any, choices: Any):
        self.fn, self.treedef, self.names = fn, treedef, names
        self.shapes, self.choices = shapes, tuple(choices)

    def __call__(self, params: Params, *args: Any) -> Any:
        given = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, FORMS))
        if len(given) != len(self.names):
            raise ValueError(
                f"fast: these params have {len(given)} leaves, and the network has "
                f"{len(self.names)}. Give network.params, or a tree like it."
            )
        leaves = dict(zip(self.names, given, strict=True))
        for name in self.shapes:
            if not isinstance(leaves[name], FORMS):
                raise ValueError(
                    f"fast: '{name}' is an array, and the network has it in another form. Give "
                    "network.params, or call the function itself with the dense params."
                )
        whole = [self.shapes.get(name, leaf) for name, leaf in leaves.items()]
        dense = jax.tree.unflatten(self.treedef, whole)
        jaxpr, shape = jax.make_jaxpr(self.fn, return_shape=True)(dense, *args)
        held = [
            _held(n, x, leaves[n]) if n in self.shapes else x
            for n, x in zip(leaves, whole, strict=True)
        ]
        results = run(jaxpr, [*held, *jax.tree.leaves(args)], _multiply)
        return jax.tree.unflatten(jax.tree.structure(shape), results)


def _shape(leaf: Any) -> Any:
    """The shape and the dtype of a leaf, and its sharding over explicit axes: part of its type."""
    shape, sharding = shape_only(leaf), explicit_sharding(leaf)
    if sharding is None:
        return shape
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _held(name: str, leaf: Any, form: Any = None) -> Held:
    return Held(name, leaf.dtype, tuple(range(leaf.ndim)), form)


def _multiply(read: Read, x: jax.Array) -> jax.Array:
    """A product with a kernel in another form."""
    dtype = read.kernel.dtype
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else x
    form = jax.tree.map(cast, read.kernel.form)
    if read.eqn.primitive.name == "dot_general":
        return product(read, x, form.multiply)
    if hasattr(form, "convolve"):
        return convolve(read.eqn, x, form.convolve)
    return convolve(read.eqn, x, lambda image, **how: form.multiply(image.features(), **how))


# --- the choice -----------------------------------------------------------------------------------


def _reads(
    fn: Callable[..., Any], params: Params, masks: dict[str, Any], args: tuple[Any, ...]
) -> dict[str, list[Read]]:
    """By leaf the equations that read it."""
    try:
        jaxpr = jax.make_jaxpr(fn)(jax.tree.map(_shape, params), *args)
    except Exception as error:
        error.add_note("fast: the function does not take these params and args")
        raise
    held = [_held(n, x) if n in masks else None for n, x in present_leaves(params)]
    found: dict[str, list[Read]] = {}
    for read in reads(jaxpr, [*held, *(None for _ in jax.tree.leaves(args))]):
        found.setdefault(read.name, []).append(read)
    return found


def _chosen(
    name: str, kernel: jax.Array, mask: np.ndarray, found: list[Read], rounds: int, clock: Any
) -> tuple[Any, Choice]:
    """The form of a leaf, None for dense, and its row of the table."""
    density = float(mask.mean())
    rows = max((read.rows for read in found), default=0)
    stays = lambda pattern, why: (None, Choice(name, pattern, density, rows, "dense", 1.0, why))
    if why := _stays(kernel, found):
        return stays("", why)
    layout: Any = found[0].layout
    window, kernel = found[0].window, on_all_devices(kernel)
    matrix, of = as_matrix(kernel, layout), np.asarray(as_matrix(mask, layout))
    pattern, made = of_window(matrix, of, window) if window else candidates(matrix, of)
    if not made:
        return stays(pattern, "too dense for any other form")
    seconds = times(kernel, made, _products(kernel, found), rounds, clock)
    ratios = {own.name: seconds["dense"] / seconds[own.name] for own in made}
    best: Candidate = max(made, key=lambda own: ratios[own.name])
    told = lambda names: ", ".join(f"{n} {ratios[n]:.2g}" for n in names)
    if ratios[best.name] < PAYS:
        return stays(pattern, f"nothing is faster: {told(ratios)}")
    others = told(n for n in ratios if n != best.name)
    row = Choice(name, pattern, density, rows, best.name, ratios[best.name], others)
    return best.form, row


def _stays(kernel: jax.Array, found: list[Read]) -> str | None:
    """Why a leaf can have no other form, whatever its mask; None if it can."""
    if why := next((f"it {read.why}{read.line}" for read in found if read.why), None):
        return why
    if not found:
        return "no product reads it"
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        return f"it is {kernel.dtype}"
    first, others = found[0], [read for read in found if read.view != found[0].view]
    if others:
        return (
            f"it is read in two ways, {in_words(first)}, and {in_words(others[0])}; a form is for "
            "one of them"
        )
    if first.window and first.stacked:
        return "it is a stack of convolutions"
    return None


def _products(kernel: jax.Array, found: list[Read]) -> list[Product]:
    """The products of a leaf, each shape of inputs once, dense and with a form."""
    made: dict[Any, Product] = {}
    for read in found:
        x = read.eqn.invars[1 - read.place].aval
        made[x.shape, read.place, str(read.eqn.params)] = _product(kernel, read, x)
    return list(made.values())


def _product(leaf: jax.Array, read: Read, x: Any) -> Product:
    """Of a stack its first layer is timed."""
    eqn, stacked, kernel = read.eqn, read.stacked, read.kernel
    layer = lambda tree: jax.tree.map(lambda a: a[0], tree) if stacked else tree
    axes = [i - stacked for i in kernel.axes]

    def dense(x: jax.Array, leaf: jax.Array) -> jax.Array:
        operand = layer(leaf).transpose(axes).astype(kernel.dtype)
        return bind(eqn, [operand, x] if read.place == 0 else [x, operand])[0]

    def formed(x: jax.Array, form: Any) -> jax.Array:
        return _multiply(replace(read, kernel=replace(kernel, form=layer(form))), x)

    return Product(jax.ShapeDtypeStruct(x.shape, x.dtype), dense, formed)


def _cells(choice: Choice) -> tuple[str, ...]:
    density, ratio = f"{100 * choice.density:.1f} %", f"{choice.ratio:.2g}"
    return (
        *(choice.leaf, choice.pattern, density, str(choice.rows)),
        *(choice.form, ratio, choice.others),
    )
