"""The loss on lines and planes through params, and the plane through three models."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params, is_int, is_known, widened
from jaxprune.losses import Loss, as_partial, check_loss, scan
from jaxprune.trees import check_like


class Frame(NamedTuple):
    """A plane in the space of params: `origin + a x + b y`, three trees like the params."""

    origin: Params
    x: Params
    y: Params


def line(
    loss: Loss, origin: Params, x: Params, xs: Any, *, chunk: int = 1, unroll: bool = False
) -> Any:
    """`loss(origin + a x)` for each a in `xs`: like what loss returns, each (points,).

    See `plane` for the arguments.
    """
    xs = _grid("xs", xs)
    return _losses("line", loss, origin, {"x": x}, xs[:, None], chunk, unroll)


def plane(
    loss: Loss,
    origin: Params,
    x: Params,
    y: Params,
    xs: Any,
    ys: Any,
    *,
    chunk: int = 1,
    unroll: bool = False,
) -> Any:
    """`loss(origin + a x + b y)` on a grid: like what loss returns, each (len(ys), len(xs)).

    Entry [i, j] belongs to b = ys[i] and a = xs[j], as `contour(xs, ys, losses)` of matplotlib
    wants it. With `plane_through`: `plane(loss, *frame, xs, ys)`.

    Args:
      loss: `params -> scalar`, or a pytree of scalars (loss and error together).
      origin, x, y: trees like the params. With masks, the origin is masked already.
      xs, ys: coordinates, 1-D.
      chunk: how many points are evaluated at once, under `vmap`; each takes a copy of the params.
      unroll: call the compiled loss from Python, one chunk after the other, and not in a loop of
        XLA, where convolutions on CPU are 15 to 65 times slower.

    Raises:
      ValueError: if the trees differ, the loss returns no scalar, or a grid is empty.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> along = lambda w: w[0] + 10 * w[1]
    >>> w, x, y = jnp.zeros(2), jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
    >>> jp.analysis.plane(along, w, x, y, [0.0, 1.0, 2.0], [0.0, 1.0]).tolist()
    [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
    """
    xs, ys = _grid("xs", xs), _grid("ys", ys)
    points = jnp.stack(jnp.meshgrid(xs, ys), -1).reshape(-1, 2)
    losses = _losses("plane", loss, origin, {"x": x, "y": y}, points, chunk, unroll)
    return jax.tree.map(lambda values: values.reshape(len(ys), len(xs)), losses)


def plane_through(a: Params, b: Params, c: Params) -> Frame:
    """The plane through three models, with orthonormal axes.

        u = b - a,   v = (c - a) - <c - a, u> u / |u|^2,   x = u / |u|,   y = v / |v|

    `coordinates` says where a model lies in it: a at (0, 0), b at (|u|, 0).

    Args:
      a, b, c: trees like the params. If they share masks, so does every model of the plane.

    Raises:
      ValueError: if they lie on one line.

    Reference: Garipov et al., 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs.
    """
    for argument, tree in {"b": b, "c": c}.items():
        check_like(f"plane_through: {argument}", tree, a)
    origin = a
    a, b, c = _wide((a, b, c))
    u, w = optax.tree.sub(b, a), optax.tree.sub(c, a)
    length = optax.tree.norm(u)
    x = optax.tree.scale(1 / jnp.where(length > 0, length, 1), u)
    v = w
    for _ in range(2):  # a second time, for what rounding left of x
        v = optax.tree.add_scale(v, -optax.tree.vdot(v, x), x)
    height, far = optax.tree.norm(v), optax.tree.norm(w)
    on_a_line = (length == 0) | (height <= 1e-5 * far)
    if is_known(on_a_line) and on_a_line:
        raise ValueError(
            f"plane_through: the three models lie on one line (|b - a| = {length:.3g}, c is "
            f"{height:.3g} away from it), and many planes contain it. Take another third model, "
            "or line(loss, a, b - a, xs)."
        )
    y = optax.tree.scale(1 / jnp.where(height > 0, height, 1), v)
    as_given = lambda axis: jax.tree.map(lambda d, w: d.astype(w.dtype), axis, origin)
    return Frame(origin, as_given(x), as_given(y))


def coordinates(frame: Frame, params: Params) -> jax.Array:
    """(a, b, distance), float32 (3,): the nearest point of the plane, and how far it is.

        (a, b) = argmin |origin + a x + b y - params|

    The axes need not be orthonormal, but must not be parallel. For a stack of models use `vmap`.

    Raises:
      ValueError: if the trees differ, or the axes are parallel.
    """
    origin, x, y = frame
    for argument, tree in {"x": x, "y": y, "params": params}.items():
        check_like(f"coordinates: {argument}", tree, origin)
    origin, x, y, params = _wide((origin, x, y, params))
    off = optax.tree.sub(params, origin)
    xx, xy, yy = (optax.tree.vdot(*pair) for pair in ((x, x), (x, y), (y, y)))
    ox, oy = optax.tree.vdot(off, x), optax.tree.vdot(off, y)
    determinant = xx * yy - xy * xy
    parallel = determinant <= 1e-10 * xx * yy
    if is_known(parallel) and parallel:
        raise ValueError("coordinates: the axes of this frame are parallel, and span no plane.")
    a, b = (ox * yy - oy * xy) / determinant, (oy * xx - ox * xy) / determinant
    rest = optax.tree.add_scale(optax.tree.add_scale(off, -a, x), -b, y)
    return jnp.stack([a, b, optax.tree.norm(rest)]).astype(jnp.float32)


def _wide(tree: Any) -> Any:
    """Lengths are sums of squares, which overflow float16."""
    return jax.tree.map(lambda leaf: widened(jnp.asarray(leaf)), tree)


def _grid(argument: str, values: Any) -> jax.Array:
    array = jnp.asarray(values, jnp.float32)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"{argument} are coordinates, 1-D and not empty; got shape {array.shape}. For "
            "instance jnp.linspace(-1, 1, 25)."
        )
    return array


def _losses(
    what: str,
    loss: Loss,
    origin: Params,
    axes: dict[str, Params],
    points: jax.Array,
    chunk: int,
    unroll: bool,
) -> Any:
    """`loss(origin + sum_i point_i axis_i)` of each row of points (points, axes)."""
    if not is_int(chunk, 1):
        raise ValueError(f"{what}: chunk is a number of points, at least 1; got {chunk!r}.")
    for argument, axis in axes.items():
        check_like(f"{what}: {argument}", axis, origin)
    loss = as_partial(loss)
    check_loss(what, loss, origin, several=True)
    rows = jnp.pad(points, ((0, -len(points) % chunk), (0, 0)), mode="edge")
    rows = rows.reshape(-1, chunk, points.shape[1])
    _, losses = scan(_chunk, (loss, origin, list(axes.values())), None, rows, unroll)
    return jax.tree.map(lambda values: values.reshape(-1)[: len(points)], losses)


def _chunk(context: Any, carry: None, points: jax.Array) -> tuple[None, Any]:
    loss, origin, axes = context

    def at(point: jax.Array) -> Any:
        params = origin
        for i, axis in enumerate(axes):
            params = jax.tree.map(lambda w, d, a=point[i]: w + a.astype(w.dtype) * d, params, axis)
        return loss(params)

    if len(points) == 1:  # vmap of one point would still make grouped convolutions
        return carry, jax.tree.map(lambda value: value[None], at(points[0]))
    return carry, jax.vmap(at)(points)
