"""Losses of logits: Hinton's, and the divergences forward, reverse, and balanced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import is_known, widened
from jaxprune.gates.gate import check_positive


def hinton(
    student: jax.Array,
    teacher: jax.Array,
    labels: jax.Array,
    temperature: Any = 4.0,
    weight: Any = 0.9,
    where: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy with the labels, mixed with the softened answers of a teacher.

        (1 - weight) CE(labels, student) + weight T^2 KL(p | q)

    p and q are the softmax of the teacher's and of the student's logits over T. T^2 keeps the size
    of the gradient as T grows.

    Args:
      student, teacher: logits (..., classes), floating point, of the same inputs: where images are
        augmented, both see the augmented ones.
      labels: int (...).
      temperature: T above 0; may be traced. 1 to 20 are in use.
      weight: of the teacher, in [0, 1]; may be traced.
      where: bool (...), the examples that count, such as all but the padding; None for all.

    Returns:
      A float32 scalar, the mean over examples. Only the student has a gradient.

    Raises:
      ValueError: if the logits or the labels do not fit, the temperature is not above 0, or the
        weight is not in [0, 1].

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
    >>> round(float(jp.distillation.hinton(student, teacher, jnp.array([0]))), 4)
    0.139

    Reference: Hinton, Vinyals and Dean, 2015, Distilling the Knowledge in a Neural Network.
    """
    soft = forward_kl(student, teacher, temperature, where)
    if jnp.shape(labels) != jnp.shape(student)[:-1]:
        raise ValueError(
            f"hinton: logits of shape {jnp.shape(student)} need labels of shape "
            f"{jnp.shape(student)[:-1]}; got {jnp.shape(labels)}. A label is the number of a class."
        )
    if is_known(weight) and not np.all((np.asarray(weight) >= 0) & (np.asarray(weight) <= 1)):
        raise ValueError(
            f"hinton: weight is the teacher's share of the loss, in [0, 1]; got {weight}."
        )
    hard = optax.softmax_cross_entropy_with_integer_labels(widened(student), labels)
    return (1 - weight) * jnp.mean(hard, where=where) + weight * soft


def forward_kl(
    student: jax.Array,
    teacher: jax.Array,
    temperature: Any = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """T^2 KL(p | q), p and q the softened answers of teacher and student: their mean.

        p = softmax(teacher / T),  q = softmax(student / T),  KL(p | q) = sum_classes p log(p / q)

    The student covers all that the teacher holds for possible. As T grows, the gradient of an
    example goes to the difference of the centered logits over the number of classes. In online
    distillation the teacher learns too, by `forward_kl(teacher, student)` and its own labels.

    Args:
      student, teacher: logits (..., classes), floating point. A class whose logit is -inf in both
        counts nothing.
      temperature: T above 0; may be traced.
      where: bool (...), the examples that count; None for all.

    Returns:
      A float32 scalar: the mean over examples of the sum over classes. The teacher has no gradient.

    Raises:
      ValueError: if the logits do not fit, or the temperature is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
    >>> round(float(jp.distillation.forward_kl(student, teacher)), 4)
    0.0671

    Reference: Hinton, Vinyals and Dean, 2015, Distilling the Knowledge in a Neural Network.
    """
    log_q, log_p = _softened("forward_kl", student, teacher, temperature)
    return temperature**2 * jnp.mean(_kl(log_p, log_q), where=where)


def reverse_kl(
    student: jax.Array,
    teacher: jax.Array,
    temperature: Any = 1.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """T^2 KL(q | p), p and q the softened answers of teacher and student: their mean.

    The student gives nothing to what the teacher holds for impossible, and may leave out what it
    holds for possible. Arguments, result and errors are those of `forward_kl`.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
    >>> round(float(jp.distillation.reverse_kl(student, teacher)), 4)
    0.0826

    Reference: Gu et al., 2024, MiniLLM: Knowledge Distillation of Large Language Models.
    """
    log_q, log_p = _softened("reverse_kl", student, teacher, temperature)
    return temperature**2 * jnp.mean(_kl(log_q, log_p), where=where)


def balanced_kl(
    student: jax.Array,
    teacher: jax.Array,
    temperature: Any = 1.0,
    strength: Any = 2.0,
    where: jax.Array | None = None,
) -> jax.Array:
    """BD-KD: both divergences of each example, the one that it needs more with a larger weight.

        T^2 (a KL(p | q) + b KL(q | p)),  (a, b) = (strength, 1) if H(q) > H(p) else (1, strength)

    H is the entropy of the softened answer: a student that is less sure than its teacher gets more
    of the forward divergence, a surer one more of the reverse divergence. This rule is our reading
    of "sample-wise"; the paper's own weights may differ.

    Args:
      student, teacher, temperature, where: as in `forward_kl`.
      strength: the larger weight, above 0; may be traced. 1 is the plain sum.

    Returns:
      A float32 scalar, the mean over examples. The teacher has no gradient.

    Raises:
      ValueError: if the logits do not fit, or the temperature or the strength is not above 0.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> student, teacher = jnp.array([[1., 0.]]), jnp.array([[2., 0.]])
    >>> round(float(jp.distillation.balanced_kl(student, teacher)), 4)
    0.2169

    Reference: Amara et al., 2023, BD-KD: Balancing the Divergences for Online Knowledge
    Distillation.
    """
    check_positive("balanced_kl", "strength", strength)
    log_q, log_p = _softened("balanced_kl", student, teacher, temperature)
    unsure = _entropy(log_q) > _entropy(log_p)
    a, b = jnp.where(unsure, strength, 1.0), jnp.where(unsure, 1.0, strength)
    both = a * _kl(log_p, log_q) + b * _kl(log_q, log_p)
    return temperature**2 * jnp.mean(both, where=where)


def _softened(what: str, student: Any, teacher: Any, temperature: Any) -> tuple[Any, Any]:
    """The logarithms of the softened answers of student and teacher."""
    check_positive(what, "temperature", temperature)
    shapes = jnp.shape(student), jnp.shape(teacher)
    if shapes[0] != shapes[1] or not shapes[0]:
        classes = [shape[-1:] for shape in shapes]
        why = (
            "Both networks answer the same classes: give the teacher the head of the student's task"
            if classes[0] != classes[1]
            else "Both networks read the same examples: give both the same batch"
        )
        raise ValueError(
            f"{what} needs logits (..., classes) of one shape; the student's have shape "
            f"{shapes[0]}, the teacher's {shapes[1]}. {why}."
        )
    own, told = widened(student), jax.lax.stop_gradient(widened(teacher))
    return jax.nn.log_softmax(own / temperature), jax.nn.log_softmax(told / temperature)


def _kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p | q) along the last axis; where p is 0 an entry counts nothing."""
    gap = jnp.where(jnp.isneginf(log_p), 0.0, log_p - log_q)
    return jnp.sum(jnp.exp(log_p) * gap, -1)


def _entropy(log_p: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0.0, log_p), -1)
