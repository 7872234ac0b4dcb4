"""The words of the library: scores, sparsities, masks, and the transform of masks.

    params -> scores -> sparsities (allocation) -> masks (pattern) -> sparsified update

Four words, each a pytree shaped like `params`: **scores** (float, higher = keep), **sparsities**
(scalars), **masks** (bool, True = kept) and **params**. A leaf that is never pruned is `None` in
scores and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Params = Any
Scores = Any
Masks = Any

# A Python float, a float scalar array, or an integer. A *float* is the fraction pruned, in [0, 1).
# An *integer* is the number of weights pruned: of all leaves together where an allocation reads it,
# of one leaf where an allocation returns it. A float32 fraction can't name one of 25M weights.
Sparsity = Any
Sparsities = Any

Score = Callable[..., Scores]  # (params, *, grads, opt_state, step, **extra) -> scores
Allocation = Callable[[Scores, Sparsity], Sparsities]  # how much of each leaf
Pattern = Callable[[jax.Array, Sparsity], jax.Array]  # which entries of one leaf


class MaskState(NamedTuple):
    """The smallest state of a mask transform: its masks, bool, `None` where never pruned."""

    masks: Masks


class StateWithMasks(Protocol):
    """Any NamedTuple with a field (or property) `masks`."""

    @property
    def masks(self) -> Masks: ...


class MaskTransform(NamedTuple):
    """A pair of pure functions that makes masks and changes them over time: optax's pair for masks.

    Attributes:
      init: `params -> state`, a NamedTuple with a field `masks`. Its arrays may be donated: they
        are copies, not constants of the transform.
      update: `(state, params, *, grads, step, opt_state, **extra) -> state`, of the same structure,
        shapes and dtypes. `grads` are the gradients of this step, `step` (int32 scalar) counts from
        0, and `opt_state` is the state of the inner optimizer. `extra` is what the user passes to
        `optimizer.update`, such as `value=loss`. `every` adds `at_end` (bool scalar): True at the
        last update, where schedules are read at their end.
      due: `(state, *, step, at_end=False) -> bool scalar`: whether `update` chooses masks at this
        step, even if they are the same as before. None if it is not known: `every` makes one.
    """

    init: Callable[[Params], Any]
    update: Callable[..., Any]
    due: Callable[..., Any] | None = None


def is_known(value: Any) -> bool:
    """Whether all values can be read now: no leaf is traced by `jit`, `vmap` or `grad`."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def is_int(value: Any, least: int) -> bool:
    """Whether `value` is an integer, but no bool, and at least `least`."""
    return not isinstance(value, bool) and hasattr(value, "__index__") and value >= least


def is_mask(leaf: Any) -> bool:
    """Whether `leaf` is an array of bool."""
    return np.dtype(getattr(leaf, "dtype", object)) == np.bool_


def copied(tree: Any) -> Any:
    """A copy of every array, so that the copy may be donated and the original lives on."""
    return jax.tree.map(jnp.copy, tree)


def widened(x: Any) -> Any:
    """`x` in float32, or in float64 if it has 64 bits: scores are computed and ranked there.

    In float16 a product of two small numbers is zero, and float8 may have no infinity. Complex
    arrays stay as they are.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x
    return x.astype(jnp.float64 if x.dtype.itemsize == 8 else jnp.float32)


def shown(value: Any) -> str:
    """A value in a few words, for an error message: an array would fill the screen."""
    if hasattr(value, "dtype") and hasattr(value, "shape") and np.size(value) > 1:
        return f"an array of {value.dtype} of shape {tuple(value.shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = repr(value)
    is_short = len(text) <= 80 and "\n" not in text
    return text if is_short else f"a {type(value).__name__}"


# --- functions as arguments -----------------------------------------------------------------------

F = TypeVar("F", bound=Callable[..., Any])


def call_first(example: str) -> Callable[[F], F]:
    """Marks a function that makes a score, an allocation or a pattern, such as `lamp`."""

    def marked(maker: F) -> F:
        setattr(maker, "call_first", example)  # noqa: B010
        return maker

    return marked


def check_function(argument: str, value: Any, wanted: str) -> None:
    """TypeError unless `value` is a function, and none that must be called first."""
    example = getattr(value, "call_first", None)
    if example or not callable(value):
        hint = f" Call it first, as in {example}." if example else ""
        raise TypeError(f"{argument} is a function{wanted}; got {shown(value)}.{hint}")


def check_score(argument: str, score: Any) -> None:
    """TypeError unless `score` is a score."""
    check_function(argument, score, ", such as jp.magnitude, jp.random(key) or jp.lamp()")


def check_allocation(allocation: Any) -> None:
    """TypeError unless `allocation` is an allocation."""
    wanted = " (scores, sparsity) -> sparsities, such as jp.erk or jp.global_threshold"
    check_function("allocation", allocation, wanted)


def check_pattern(pattern: Any) -> None:
    """TypeError unless `pattern` is a pattern."""
    wanted = (
        " (scores, sparsity) -> mask of one leaf, such as jp.unstructured, jp.nm(2, 4), "
        "jp.block(4, 4) or jp.channel(-1)"
    )
    check_function("pattern", pattern, wanted)


# --- sparsities -----------------------------------------------------------------------------------


def is_count(sparsity: Any) -> bool:
    """Whether a sparsity is an integer, and so a number of weights; it may be traced."""
    if isinstance(sparsity, bool):
        return False
    dtype = getattr(sparsity, "dtype", None)
    return isinstance(sparsity, int) or (dtype is not None and jnp.issubdtype(dtype, jnp.integer))


def check_sparsity(sparsity: Any, size: int | None = None, of: str = "weights") -> Any:
    """`sparsity` itself, or ValueError where it is known and neither a fraction nor a count.

    Args:
      size: how many weights there are; a count must leave one of them. None where not known.
      of: what is counted.
    """
    if not is_count(sparsity) or not is_known(sparsity) or np.ndim(sparsity):
        return check_fraction(sparsity)
    n = int(sparsity)
    if n < 0 or (size is not None and n >= max(size, 1)):
        total = "" if size is None else f" of {size:,}"
        hint = f" For {n}% write {n / 100:g}." if 1 < n < 100 else ""
        raise ValueError(
            f"an integer sparsity is how many {of}{total} are pruned, and leaves some; a float is "
            f"the fraction pruned, in [0, 1); got {n:,}.{hint}"
        )
    return sparsity


def check_fraction(sparsity: Any, why: str = "") -> Any:
    """`sparsity` itself, or ValueError where it is known and not a fraction in [0, 1).

    Args:
      why: a sentence for an integer: why it can't be a number of weights here.
    """
    numbers = (int, float, np.ndarray, np.generic, jax.Array)
    is_bool = is_mask(sparsity) or isinstance(sparsity, bool)
    if is_bool or (is_known(sparsity) and not isinstance(sparsity, numbers)):
        raise TypeError(
            "sparsity must be a number in [0, 1), the fraction pruned; got "
            f"{shown(sparsity)} of type {type(sparsity).__name__}."
        )
    if not is_known(sparsity):
        return sparsity
    if np.ndim(sparsity) != 0:
        raise ValueError(
            f"sparsity must be one number; got an array of shape {np.shape(sparsity)}. "
            "For one sparsity a layer use allocation=per_layer({path: sparsity})."
        )
    value = float(sparsity)
    if not 0.0 <= value < 1.0:
        hint = f" For {value:g}% write {value / 100:g}." if 1.0 < value < 100.0 else ""
        hint += f" {why}" if why and is_count(sparsity) else ""
        raise ValueError(f"sparsity is the fraction pruned, in [0, 1); got {value:g}.{hint}")
    return sparsity


def arguments(what: str, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """Each batch as the arguments of a call: a tuple is several, anything else is one.

    Raises:
      ValueError: at the end, if there was no batch.
    """
    empty = True
    for batch in batches:
        empty = False
        yield batch if isinstance(batch, tuple) else (batch,)
    if empty:
        raise ValueError(f"{what}: batches is empty; give it at least one batch of inputs.")
