"""What the losses of features share: checks of shapes, and norms with a slope everywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxprune.base import widened


def pair(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both in float32; the teacher without a gradient."""
    return widened(student), jax.lax.stop_gradient(widened(teacher))


def check_examples(what: str, student: jax.Array, teacher: jax.Array) -> None:
    """ValueError unless both have features (n, ...) of the same n examples."""
    shapes = jnp.shape(student), jnp.shape(teacher)
    if any(len(shape) < 2 for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"{what} needs features (n, ...) of the same n examples; the student's have shape "
            f"{shapes[0]}, the teacher's {shapes[1]}. Give both networks the same batch."
        )


def check_places(what: str, student: jax.Array, teacher: jax.Array, way_out: str) -> None:
    """ValueError unless the features differ in their last axis only."""
    check_examples(what, student, teacher)
    shapes = jnp.shape(student), jnp.shape(teacher)
    if shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(
            f"{what} needs features that differ in their channels only, the last axis; the "
            f"student's have shape {shapes[0]}, the teacher's {shapes[1]}. {way_out}"
        )


def norm(x: jax.Array) -> jax.Array:
    """The norm along the last axis, which stays, of size 1; at 0 its slope is 0 and not nan."""
    squares = jnp.sum(x**2, -1, keepdims=True)
    return root(squares)


def root(squares: jax.Array) -> jax.Array:
    """The square root; at 0 and below it is 0, with a slope of 0."""
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)
