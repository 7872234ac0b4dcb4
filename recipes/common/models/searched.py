"""Fully connected networks of many architectures that train in one program, and one such network.

`Widest` is the widest and deepest network of a search. A narrower network is `Widest` with zeros:
a neuron whose weights are zero, in and out, has a zero gradient too, so that it stays out. A layer
that is off passes on its inputs. The architecture is data, so that one `vmap` trains them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprune.reparam import fake_quantize


class Architecture(NamedTuple):
    """An architecture; arrays of these shapes, or stacks of them."""

    widths: Any  # int32 (depth,): neurons of each hidden layer; 0 for a layer that is off
    slope: Any  # float32: the slope of the activation below zero; 0 for ReLU
    normed: Any  # bool: batch normalization before each activation


class Widest(nn.Module):
    """The widest network of a search; the first of its layers is never off.

    The architecture is in the collection "batch_stats", which training passes on unchanged.
    """

    depth: int
    width: int
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        whole = Architecture(jnp.full(self.depth, self.width), jnp.float32(0), jnp.bool(False))
        of = Architecture(
            *(
                self.variable("batch_stats", name, lambda value=value: value).value
                for name, value in whole._asdict().items()
            )
        )
        x = images.reshape(images.shape[0], -1)
        for i in range(self.depth):
            y = _dense(self.width, i)(x)
            y = jnp.where(of.normed, _norm(train, i)(y), y)
            y = jnp.where(y > 0, y, of.slope * y)
            x = jnp.where(of.widths[i] > 0, y, x) if i else y
        return nn.Dense(self.classes, name="logits")(x)


class Searched(nn.Module):
    """The network of one architecture.

    Attributes:
      widths: the neurons of each hidden layer.
      slope: the slope of the activation below zero.
      normed: batch normalization before each activation.
      classes: of the logits.
      bits: of the inputs of each layer, which are fixed-point numbers; 32 for floats.
    """

    widths: tuple[int, ...]
    slope: float
    normed: bool
    classes: int
    bits: int = 32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = _dense(width, i)(self.inputs(x, train, i))
            x = _norm(train, i)(x) if self.normed else x
            x = jnp.where(x > 0, x, self.slope * x)
        return nn.Dense(self.classes, name="logits")(self.inputs(x, train, "logits"))

    def inputs(self, x: jax.Array, train: bool, i: int | str) -> jax.Array:
        """What a layer reads: floats, or a grid that ends at the largest value of each batch.

        Outside of training it ends at the running mean of these, so that no example depends on
        others.
        """
        if self.bits == 32:
            return x
        running = self.variable("batch_stats", f"largest_{i}", jnp.zeros, ())
        largest = jnp.max(jnp.abs(x))
        if train and not self.is_initializing():
            old = jnp.where(running.value > 0, running.value, largest)
            running.value = 0.9 * old + 0.1 * largest
        end = largest if train else running.value
        return fake_quantize(x, self.bits, ends=(-end, end), power_of_two=True)


def _dense(width: int, i: int) -> nn.Dense:
    return nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"Dense_{i}")


def _norm(train: bool, i: int) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"Norm_{i}")


def narrowed(params: Any, architecture: Architecture) -> Any:
    """Weights of `Widest`, cut to an architecture: the first neurons of each layer stay.

    The weights that stay grow, because fewer inputs are summed.
    """
    cut, before = dict(params), jnp.ones(len(params["Dense_0"]["kernel"]))
    for i, width in enumerate(architecture.widths):
        here = 1.0 * (jnp.arange(params[f"Dense_{i}"]["kernel"].shape[1]) < width)
        cut[f"Dense_{i}"] = _cut(params[f"Dense_{i}"], before, here)
        before = jnp.where(width > 0, here, before) if i else here
    cut["logits"] = _cut(params["logits"], before, jnp.ones(len(params["logits"]["bias"])))
    return cut


def _cut(layer: Any, before: jax.Array, here: jax.Array) -> Any:
    larger = jnp.sqrt(len(before) / before.sum())
    kernel = layer["kernel"] * before[:, None] * here[None, :] * larger
    return {"kernel": kernel, "bias": layer["bias"] * here}
