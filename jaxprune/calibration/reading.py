"""A program evaluated over batches, equation by equation, that stops at each product of a leaf."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprune.base import Params
from jaxprune.calibration.matrices import Back, kernel_matrix, matrices_of, patches, rows_of
from jaxprune.calibration.method import Inputs
from jaxprune.programs.interpret import bind, programs, scan_parts, walk
from jaxprune.programs.primitives import Side, sides
from jaxprune.trees import named_leaves, quoted, with_leaves

# equations whose results have the entries of the operand, or some of them, in other places
PLACES = (
    "reshape",
    "transpose",
    "squeeze",
    "convert_element_type",
    "slice",
    "split",
    "copy",
    "rev",
)


class Leaf(NamedTuple):
    """Entries of a leaf: which leaf, where in it, and how they are read and written."""

    name: str
    part: tuple[Any, ...]  # an int for each turn of a scan, a tuple for each slice or split
    get: Callable[[jax.Array], jax.Array]  # leaf -> entries
    put: Callable[[jax.Array, jax.Array], jax.Array]  # leaf, entries -> leaf


class Value(NamedTuple):
    """A value for each batch, or one for all; and the leaf of which it has the entries."""

    batches: tuple[Any, ...]
    leaf: Leaf | None = None


class Product(NamedTuple):
    """A leaf times inputs, as matrices side by side.

    Attributes:
      matrices: (n, inputs, outputs), n > 1 for experts.
      back: from matrices to the entries of the leaf.
      forth: from entries of the leaf, or of an array like it, to matrices.
      inputs: n `Inputs`.
      source: equal for two products of the same inputs.
    """

    matrices: jax.Array
    back: Back
    forth: Back
    inputs: list[Inputs]
    source: Hashable


class Reading:
    """Evaluates a program of params over batches; `met` is called at each product of a leaf.

    Args:
      what: the name of the function that reads, for errors.
      wanted: the names of the leaves whose products count.
    """

    def __init__(self, what: str, params: Params, wanted: set[str]):
        self.what, self.params, self.wanted = what, params, wanted
        self.now: dict[str, Any] = dict(named_leaves(params))  # the leaves, as they are read
        self.alive: list[Any] = []  # what a `source` names must not be freed

    def met(self, leaf: Leaf, product: Product) -> None:
        """Called at each product of a wanted leaf, before it is computed."""
        raise NotImplementedError

    def run(self, fn: Callable[..., Any], batches: list[tuple[Any, ...]]) -> None:
        """Evaluates `fn(params, *batch)`, each equation over all batches, of one shape."""
        try:
            jaxpr = jax.make_jaxpr(fn)(self.params, *batches[0])
        except Exception as error:
            error.add_note(f"{self.what}: the function does not take these params and this batch")
            raise
        columns = zip(*(jax.tree.leaves(batch) for batch in batches), strict=True)
        inputs = [Value(tuple(map(jnp.asarray, column))) for column in columns]
        self.program(jaxpr, [*self.leaves(), *inputs])

    def leaves(self) -> list[Value]:
        """The operands of the program that are params."""
        whole = lambda name: Leaf(name, (), lambda leaf: leaf, lambda leaf, x: x)
        return [Value((), whole(name)) for name, x in self.now.items() if x is not None]

    def read(self, value: Value) -> tuple[Any, ...]:
        """The arrays of a value; those of a leaf as they are now."""
        return value.batches or (value.leaf.get(self.now[value.leaf.name]),)  # type: ignore[union-attr]

    def program(self, closed: Any, operands: list[Value]) -> list[Value]:
        return walk(closed, operands, self.equation, lambda x, atom: Value((x,)))

    def equation(self, eqn: Any, operands: list[Value]) -> list[Value]:
        kind, inner = eqn.primitive.name, programs(eqn)
        held = [value.leaf is not None for value in operands]
        if kind == "scan" and any(held):
            return self.scan(eqn, inner[0], operands)
        if inner and kind not in ("scan", "cond", "while"):
            return self.program(inner[0], operands)
        product = sides(eqn)
        if product is not None:
            wanted = [v.leaf is not None and v.leaf.name in self.wanted for v in operands]
            if sum(wanted) == 1:
                self.product(eqn, operands, wanted.index(True), product)
        if kind in PLACES and held == [True]:
            return _moved(eqn, operands[0].leaf)
        return self.bound(eqn, operands)

    def bound(self, eqn: Any, operands: list[Value]) -> list[Value]:
        """The results of an equation for each batch; one for all where no operand differs."""
        arrays = [self.read(value) for value in operands]
        count = max(map(len, arrays), default=1)
        of = lambda i: [x[i] if len(x) > 1 else x[0] for x in arrays]
        results = [bind(eqn, of(i)) for i in range(count)]
        return [Value(each) for each in zip(*results, strict=True)]

    def scan(self, eqn: Any, body: Any, operands: list[Value]) -> list[Value]:
        """Turn after turn, so that each layer is pruned by itself."""
        consts, carry, xs = scan_parts(eqn, operands)
        turns = range(eqn.params["length"])
        made: dict[int, list[Value]] = {}
        for turn in reversed(turns) if eqn.params["reverse"] else turns:
            results = self.program(body, [*consts, *carry, *(self.layer(x, turn) for x in xs)])
            carry, made[turn] = results[: len(carry)], results[len(carry) :]
        stacked = []
        for column in zip(*(made[turn] for turn in turns), strict=True):
            arrays = [self.read(value) for value in column]
            count = max(map(len, arrays))
            of = lambda i, arrays=arrays: [x[i] if len(x) > 1 else x[0] for x in arrays]
            stacked.append(Value(tuple(jnp.stack(of(i)) for i in range(count))))
        return [*carry, *stacked]

    def layer(self, value: Value, turn: int) -> Value:
        """What a turn of a scan reads of an array that it steps over."""
        if value.leaf is None:
            return Value(tuple(x[turn] for x in value.batches))
        name, part, get, put = value.leaf
        layer = lambda leaf: get(leaf)[turn]
        write = lambda leaf, x: put(leaf, get(leaf).at[turn].set(x))
        return Value((), Leaf(name, (*part, turn), layer, write))

    def product(
        self, eqn: Any, operands: list[Value], place: int, sides: tuple[Side, Side]
    ) -> None:
        leaf: Any = operands[place].leaf
        weight, others = leaf.get(self.now[leaf.name]), self.read(operands[1 - place])
        if sides[place].window:
            groups = [eqn.params[f"{of}_group_count"] for of in ("feature", "batch")]
            if place != 1 or groups != [1, 1]:
                raise ValueError(
                    f"{self.what} can't read '{leaf.name}', a convolution of groups. Exclude it "
                    "with prunable=jp.matching(exclude=[...])."
                )
            forth: Back = lambda x: kernel_matrix(x, eqn)[0]
            matrices, back = kernel_matrix(weight, eqn)
            batches = [patches(x, eqn) for x in others]
            how: Any = str(eqn.params)
        else:
            forth = lambda x: matrices_of(x, sides[place])[0]
            matrices, back = matrices_of(weight, sides[place])
            batches = [rows_of(x, sides[1 - place]) for x in others]
            how = sides[1 - place]
        self.alive.append(others)
        inputs = [Inputs(tuple(x[i] for x in batches)) for i in range(len(matrices))]
        self.met(leaf, Product(matrices, back, forth, inputs, (*map(id, others), how)))


class Changing(Reading):
    """A pass that changes each wanted leaf at the first product that reads it."""

    def __init__(self, what: str, params: Params, wanted: set[str]):
        super().__init__(what, params, wanted)
        self.done = set[Any]()  # (name, part)

    def change(self, leaf: Leaf, product: Product) -> None:
        """Puts the new entries of a leaf into `now`; the product reads them afterwards."""
        raise NotImplementedError

    def met(self, leaf: Leaf, product: Product) -> None:
        if (leaf.name, leaf.part) not in self.done:
            self.change(leaf, product)
            self.done.add((leaf.name, leaf.part))

    def changed(self, way_out: str) -> Params:
        """The params after the pass; ValueError for a wanted leaf that no product has read."""
        reached = {name for name, _ in self.done}
        if missed := [(n, None) for n in self.now if n in self.wanted and n not in reached]:
            raise ValueError(
                f"{self.what} reaches no product of {quoted(missed)}: the function does not read "
                f"them, or reads them within cond, while_loop or another operation. {way_out}"
            )
        return with_leaves(self.params, self.now.values())


def _moved(eqn: Any, leaf: Any) -> list[Value]:
    """The results of an equation that moves entries of a leaf; the way back is its transpose."""
    values = []
    for i in range(len(eqn.outvars)):
        step = lambda x, i=i: bind(eqn, [x])[i]
        back = jax.linear_transpose(step, eqn.invars[0].aval)

        def put(old: Any, x: Any, back: Any = back, leaf: Any = leaf) -> Any:
            here = back(jnp.ones_like(x))[0] != 0
            return leaf.put(old, jnp.where(here, back(x)[0], leaf.get(old)))

        get = lambda old, step=step, leaf=leaf: step(leaf.get(old))
        cut = eqn.primitive.name in ("slice", "split")
        part = (*leaf.part, (i, str(eqn.params.get("start_indices")))) if cut else leaf.part
        values.append(Value((), Leaf(leaf.name, part, get, put)))
    return values
