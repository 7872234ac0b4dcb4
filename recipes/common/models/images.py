"""The networks that the recipes train, as flax linen modules: images (n, h, w, c) -> logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.common.data import Key
from recipes.common.folder import RecipeError
from recipes.common.models.vit import ViT

MODELS = ("mlp", "lenet", "conv", "resnet20", "vit")
NORMS = ("group", "batch")
GROUPS = 8  # of channels, in group normalization
# the kernels next to the images and next to the logits
FIRST_LAST = {
    "mlp": ("Dense_0/kernel", "Dense_2/kernel"),
    "lenet": ("Dense_0/kernel", "Dense_2/kernel"),
    "conv": ("Conv_0/kernel", "Dense_0/kernel"),
    "resnet20": ("Conv_0/kernel", "Dense_0/kernel"),
    "vit": ("patches/kernel", "head/kernel"),
}

Layer = Callable[..., nn.Module]
# (params, batch_stats, images, labels) -> loss, (accuracy, batch_stats)
LossFn = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]]

Conv = partial(
    nn.Conv,
    use_bias=False,  # the norm after each convolution has one
    kernel_init=nn.initializers.he_normal(),
    conv_general_dilated=jp.conv_general_dilated,
)


def model(name: str, classes: int, norm: str = "group", width: float = 1.0) -> nn.Module:
    """The network called `name`; call it as `module.apply(variables, images, train=...)`.

    `norm` chooses the normalization of the convolutional ones; with "batch" the variables hold
    running statistics under "batch_stats". `width` multiplies the sizes of all hidden layers; those
    of convolutions become multiples of `GROUPS`, and vit gets more heads. Raises `RecipeError` for
    an unknown name or norm.
    """
    if norm not in NORMS:
        raise RecipeError(f"unknown norm '{norm}'; choose one of {', '.join(NORMS)}")

    def hidden(*sizes: int, multiple: int = 1) -> tuple[int, ...]:
        return tuple(max(round(width * size / multiple), 1) * multiple for size in sizes)

    if name == "mlp":
        return MLP(hidden(256, 128), classes)
    if name == "lenet":
        return MLP(hidden(300, 100), classes)  # LeNet-300-100 (LeCun et al., 1998)
    if name == "conv":
        return ConvNet(hidden(32, 64, 64, multiple=GROUPS), classes, norm)
    if name == "resnet20":
        return ResNet(3, hidden(16, 32, 64, multiple=GROUPS), classes, norm)
    if name == "vit":
        return ViT(classes, width)
    raise RecipeError(f"unknown model '{name}'; choose one of {', '.join(MODELS)}")


@partial(jax.jit, static_argnums=0)
def init(module: nn.Module, keys: jax.Array, image: jax.Array) -> Any:
    """Untrained variables, one network a key; `image` (1, h, w, c) gives the input's shape."""
    return jax.vmap(lambda key: module.init(jax.random.fold_in(key, Key.WEIGHTS), image))(keys)


def features(module: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """What the last norm of a network gives after relu, flattened (n, d); without a norm, what the
    last layer reads.
    """
    seen: list[jax.Array] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(
            context.module, (nn.GroupNorm, nn.BatchNorm)
        ):
            seen.append(nn.relu(out))
        elif (
            context.method_name == "__call__" and isinstance(context.module, nn.Dense) and not norms
        ):
            seen.append(args[0])
        return out

    norms = any("Norm" in name for name in params)
    with nn.intercept_methods(watch):
        module.apply({"params": params}, images, train=True, mutable=["batch_stats"])
    return seen[-1].reshape(len(images), -1)


def classification(module: nn.Module, temperature: float = 1.0) -> LossFn:
    """Cross-entropy of a classifier, its logits divided first, with its accuracy on the batch."""

    def loss_fn(params, batch_stats, images, labels):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, changed = module.apply(variables, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits / temperature, labels)
        accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
        return loss.mean(), (accuracy, changed.get("batch_stats", {}))

    return loss_fn


class MLP(nn.Module):
    """Fully connected layers with ReLU between them."""

    hidden: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.reshape(images.shape[0], -1)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.classes)(x)


class ConvNet(nn.Module):
    """3x3 convolutions that halve the image from the second on (no pooling), then the mean."""

    widths: tuple[int, ...]
    classes: int
    norm: str
    conv: Layer = Conv

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        norm = normalization(self.norm, train)
        x = images
        for i, width in enumerate(self.widths):
            x = nn.relu(norm()(self.conv(width, (3, 3), strides=1 if i == 0 else 2)(x)))
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. (2016), with projections where the shape changes."""

    blocks: int
    widths: tuple[int, ...]
    classes: int
    norm: str

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        norm = normalization(self.norm, train)
        x = nn.relu(norm()(Conv(self.widths[0], (3, 3))(images)))
        for stage, width in enumerate(self.widths):
            for block in range(self.blocks):
                x = residual(x, width, 2 if stage > 0 and block == 0 else 1, norm)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


def residual(x: jax.Array, width: int, stride: int, norm: Layer) -> jax.Array:
    """relu(x + f(x)), f two 3x3 convolutions; x is projected where f changes its shape."""
    y = nn.relu(norm()(Conv(width, (3, 3), strides=stride)(x)))
    y = norm()(Conv(width, (3, 3))(y))
    if x.shape != y.shape:
        x = norm()(Conv(width, (1, 1), strides=stride)(x))
    return nn.relu(x + y)


def normalization(norm: str, train: bool) -> Layer:
    """The norm layer to build: groups of channels of one image, or channels of the whole batch."""
    if norm == "batch":
        return partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    return partial(nn.GroupNorm, num_groups=GROUPS)
