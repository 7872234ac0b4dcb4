"""One layer, one leaf: in place of a stack of layers, as `nn.scan` makes it, its layers stand.

A `prunable` chooses the leaves to prune and defines one layer: in place of a stack it gives a node
with each layer as a child. Scores, allocations, patterns and all transforms then see layers, and
know nothing of stacks. States and params stay as they are:

    split_like(tree, chosen)   a tree like the params -> a tree like the chosen leaves
    folded(tree)               and back
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import SequenceKey

from jaxprune.prunable.layout import Kernel
from jaxprune.selection.deferred import Layer, cut, stacked_places, taken

Path = tuple[Any, ...]


@jax.tree_util.register_pytree_with_keys_class
class Stack:
    """Layers that are stacked in the params: a node with each as a child, `"layers/3/kernel"`.

    Attributes:
      layers: pytrees, one a layer, None where a leaf is not chosen.
      axes: the stacked axes of each leaf of a layer, None and `Kernel` included.
      sizes: how many layers lie along each of these axes.
    """

    def __init__(self, layers: Sequence[Any], axes: tuple, sizes: tuple[int, ...]):
        self.layers, self.axes, self.sizes = tuple(layers), axes, sizes

    def split(self, tree: Any, deferred: bool = False) -> Stack:
        """Another tree of these stacks, None where this one is None.

        Args:
          deferred: whether layers are `Layer`, which are not copied out of their stack.
        """
        slots, treedef = _slots(self.layers[0])
        leaves = treedef.flatten_up_to(tree)

        def column(slot: Any, leaf: Any, axes: tuple[int, ...]) -> Sequence[Any]:
            if slot is None or leaf is None:
                return [None] * len(self.layers)
            if deferred and not isinstance(slot, Kernel):
                return cut(leaf, axes, self.sizes)
            layers = [taken(leaf, axes, index) for index in np.ndindex(self.sizes)]
            return [slot.split(x) for x in layers] if isinstance(slot, Kernel) else layers

        columns = [column(*row) for row in zip(slots, leaves, self.axes, strict=True)]
        layers = [jax.tree.unflatten(treedef, row) for row in zip(*columns, strict=True)]
        return Stack(layers, self.axes, self.sizes)

    def folded(self) -> Any:
        """The stacks."""
        _, treedef = _slots(self.layers[0])
        columns = zip(*(treedef.flatten_up_to(layer) for layer in self.layers), strict=True)
        leaves = [
            None if column[0] is None else _stacked([_bare(x) for x in column], axes, self.sizes)
            for column, axes in zip(columns, self.axes, strict=True)
        ]
        return jax.tree.unflatten(treedef, leaves)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.folded(), dtype)

    def tree_flatten_with_keys(self) -> tuple:
        keys = [(SequenceKey(i), layer) for i, layer in enumerate(self.layers)]
        return keys, (self.axes, self.sizes)

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: tuple) -> Stack:
        return cls(children, *aux)


def is_node(x: Any) -> bool:
    """Whether `x` stands for leaves of the params."""
    return isinstance(x, (Stack, Kernel))


def has_layers(tree: Any) -> bool:
    """Whether a tree has layers in place of stacks, or kernels whose layout was given."""
    return any(map(is_node, jax.tree.leaves(tree, is_leaf=is_node)))


def is_slot(x: Any) -> bool:
    """Whether `x` stands for one leaf of the params without being an array."""
    return x is None or isinstance(x, Kernel)


def _slots(layer: Any) -> tuple[list[Any], Any]:
    return jax.tree.flatten(layer, is_leaf=is_slot)


def _bare(x: Any) -> Any:
    return x.folded() if isinstance(x, Kernel) else x


def split_like(tree: Any, chosen: Any, deferred: bool = False) -> Any:
    """`tree`, like the params, made like `chosen`: with its layers, and None where it is None.

    Args:
      deferred: whether layers stay in their stacks, for `defer`, `written` and `largest`.
    """

    def split(node: Any, x: Any) -> Any:
        if isinstance(node, Stack):
            return node.split(x, deferred)
        return None if node is None else node.split(x) if is_node(node) else x

    return jax.tree.map(split, chosen, tree, is_leaf=lambda x: x is None or is_node(x))


def folded(tree: Any) -> Any:
    """`tree` in the structure of the params: stacks in place of layers."""
    return jax.tree.map(lambda x: x.folded() if is_node(x) else x, tree, is_leaf=is_node)


def _stacked(layers: Sequence[Any], axes: tuple[int, ...], sizes: tuple[int, ...]) -> Any:
    if all(isinstance(x, Layer) for x in layers) and stacked_places(layers) is not None:
        return jnp.asarray(layers[0].stack)
    if isinstance(layers[0], jax.ShapeDtypeStruct):
        shape = list(layers[0].shape)
        for axis, n in sorted(zip(axes, sizes, strict=True)):
            shape.insert(axis, n)
        return jax.ShapeDtypeStruct(tuple(shape), layers[0].dtype)
    layers = [jnp.asarray(x) for x in layers]
    if len(axes) == 1:
        return jnp.stack(layers, axes[0])
    first = jnp.stack(layers).reshape(*sizes, *layers[0].shape)
    return jnp.moveaxis(first, range(len(axes)), axes)


def with_layers(tree: Any, stacked: Mapping[Path, tuple[int, ...]], kernels: Mapping) -> Any:
    """`tree` with a `Stack` in place of subtrees whose leaves are stacked.

    A stack is the largest such subtree, but never the whole tree, so that its layers have the names
    and the order of a list of layers.

    Args:
      tree: like the params, None where a leaf is not chosen.
      stacked: the stacked axes of every leaf that is a stack, by path.
      kernels: the `Layout` of one layer, by path, of leaves whose layout was given.
    """
    slots = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: x is None)
    everything = [path for path, _ in slots]
    leaves = [(path, leaf) for path, leaf in slots if leaf is not None]
    shapes = {path: np.shape(x) if not hasattr(x, "shape") else x.shape for path, x in leaves}
    sizes = {path: tuple(shapes[path][a] for a in stacked[path]) for path in stacked}
    roots = {path: _root(path, everything, list(shapes), sizes) for path in sizes}

    def leaf_as_said(path: Path, leaf: Any) -> Any:
        if leaf is None or path not in kernels:
            return leaf
        return Kernel(None, kernels[path], layer_shape(leaf.shape, stacked.get(path, ())))

    def node(path: Path, subtree: Any) -> Any:
        if path not in set(roots.values()):
            said = leaf_as_said(path, subtree)
            return said.split(subtree) if isinstance(said, Kernel) else said
        slots = jax.tree_util.tree_leaves_with_path(subtree, is_leaf=lambda x: x is None)
        treedef = jax.tree.structure(subtree, is_leaf=lambda x: x is None)
        template = [leaf_as_said((*path, *rest), leaf) for rest, leaf in slots]
        axes = tuple(stacked.get((*path, *rest), ()) for rest, _ in slots)
        n = next(sizes[p] for p, root in roots.items() if root == path)
        one = jax.tree.unflatten(treedef, template)
        return Stack([one] * math.prod(n), axes, n).split(subtree)

    return jax.tree_util.tree_map_with_path(
        node,
        tree,
        is_leaf=lambda path, x: x is None or path in set(roots.values()),
        is_leaf_takes_path=True,
    )


def _root(
    path: Path, everything: Sequence[Path], chosen: Sequence[Path], sizes: Mapping[Path, Any]
) -> Path:
    """The subtree of the stack at `path`: all of its leaves are stacks of the same length."""
    below = lambda k, paths: [p for p in paths if p[:k] == path[:k]]
    alike = lambda k: all(sizes.get(p) == sizes[path] for p in below(k, chosen))
    depth = next(k for k in range(1, len(path) + 1) if alike(k))
    # {"params": {"layers": ...}} without anything else: the stack is that of the layers
    while depth < len(path) - 1 and below(depth, everything) == below(depth + 1, everything):
        depth += 1
    return path[:depth]


# --- visible stacks -------------------------------------------------------------------------------

_LIFTED = re.compile(r"(Scan|Vmap)[A-Z].*")  # how flax names what nn.scan and nn.vmap make
_SEVERAL = re.compile(r"(.*_)?(layers|blocks)|stack(ed)?|scan(ned)?(_.*)?")
_NORM = re.compile(r".*norm.*|bn(_?\w)?|ln(_?\w)?", re.IGNORECASE)
_DENSE = re.compile(r"Dense_\d+")
_LOCAL = re.compile(r"ConvLocal.*")  # flax: a matrix for each place is one layer
_KERNEL = ("kernel", "w", "weight")

Shapes = Mapping[str, tuple[int, ...]]


def visible_stacks(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The axes (0,) of the leaves, by name, whose names and shapes show a stack of layers.

    All leaves of a subtree must have the same first axis, one of them must show that it is a stack,
    and none that it is not. If all params have the same first axis, they may also be a stack of
    seeds: then only the names that `nn.scan` and `nn.vmap` give count.
    """
    stacks: dict[str, tuple[int, ...]] = {}
    if not any(len(shape) > 2 for shape in shapes.values()):
        return stacks
    are_seeds = len({shape[:1] for shape in shapes.values()}) == 1
    subtrees: dict[str, list[str]] = {}
    for leaf in shapes:
        parts = leaf.split("/")
        for depth in range(1, len(parts)):
            subtrees.setdefault("/".join(parts[:depth]), []).append(leaf)
    for root, below in subtrees.items():  # outer ones come first
        firsts = {shapes[leaf][:1] for leaf in below}
        if len(firsts) != 1 or firsts == {()} or below[0] in stacks:
            continue
        votes = {_shows(leaf, root.count("/"), shapes, are_seeds) for leaf in below}
        if True in votes and False not in votes:
            stacks.update(dict.fromkeys(below, (0,)))
    return stacks


def unclear_stacks(shapes: Shapes) -> list[str]:
    """The leaves, by name, that are stacks of layers along any axis: flax has no such `Dense`."""
    are_seeds = len(shapes) > 1 and len({shape[:1] for shape in shapes.values()}) == 1
    is_dense = lambda parts: (
        len(parts) > 1 and _DENSE.fullmatch(parts[-2]) and parts[-1] == "kernel"
    )
    unclear = [
        leaf
        for leaf, shape in shapes.items()
        if len(shape) > 2 and is_dense(leaf.split("/")) and not are_seeds
    ]
    return [*dict.fromkeys([*visible_stacks(shapes), *unclear])]


def _shows(leaf: str, depth: int, shapes: Shapes, are_seeds: bool) -> bool | None:
    """Whether a leaf shows that it is a stack (True), or that it is none (False).

    Args:
      depth: how many parents are outside of the subtree.
    """
    *parents, last = leaf.split("/")
    parent, shape, inside = parents[-1], shapes[leaf], parents[depth:]
    siblings = ["/".join([*parents, name]) for name in ("bias", "b")]
    bias = next((shapes[name] for name in siblings if name in shapes), None)
    is_norm = _NORM.fullmatch(parent) is not None
    is_kernel = last in _KERNEL and not is_norm
    if len(shape) < 2 or (is_kernel and (len(shape) < 3 or (bias is not None and len(bias) < 2))):
        return False
    # (outputs, inputs, window...) and (outputs, 1...): a convolution of equinox
    if last == "weight" and bias is not None and {*bias[1:]} == {1}:
        return False
    if any(_LIFTED.fullmatch(part) for part in inside):
        return True
    if are_seeds:
        return None
    if is_norm and len(shape) == 2:
        return True
    if last == "kernel" and _DENSE.fullmatch(parent):
        return True
    if last == "kernel" and parent in ("query", "key", "value", "out") and len(shape) == 4:
        return True
    if is_kernel and bias is not None:
        if bias == shape[-len(bias) :]:  # (inputs, heads, features) and (heads, features)
            return False
        if _LOCAL.fullmatch(parent):
            return False
        if bias == (shape[0], *shape[1 - len(bias) :]):  # (layers, ..., outputs), (layers, outputs)
            return True
    if any(_SEVERAL.fullmatch(part) for part in inside) and is_kernel and len(shape) == 3:
        is_list = any(part.isdecimal() for part in inside)
        return None if is_list or any("conv" in part.lower() for part in inside) else True
    return None


def layer_shape(shape: Sequence[int], stacked: Sequence[int]) -> tuple[int, ...]:
    """The shape of one layer of a stack."""
    return tuple(n for axis, n in enumerate(shape) if axis not in stacked)
