"""The sharded training step of a decoder and its calibration, compiled from shapes, never run.

`python -m recipes.sharded.compiled training '{...}'` prints what one number of devices needs, as
JSON: the devices are CPUs that do not exist, and a process can have only one number of them.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from recipes.sharded import collectives, decoder, layout


class Compiled(NamedTuple):
    """A program for one device: bytes of memory, collectives, and seconds to compile."""

    arguments: int
    temporary: int
    always: dict[str, collectives.Moved]
    in_branches: dict[str, collectives.Moved]
    seconds: float


def compile_all(
    sizes: decoder.Sizes, devices: int, tokens: int, sparsity: float, every: int
) -> dict[str, Compiled]:
    """The step of Adam, that of `sparsify(adam)` with gradual pruning, and its mask update alone.

    Args:
      devices: of the mesh; see `shape_of`.
      tokens: of a sequence; each device of the data axis has one.
    """
    mesh, params, batch = _laid_out(sizes, devices, tokens)
    ramp = optax.polynomial_schedule(0.0, sparsity, 3, 10_000)
    gmp = jp.prune(jp.magnitude, jp.global_threshold, ramp)
    adam = optax.adam(1e-4)
    own = layout.shardings(params)

    def of_step(tx: optax.GradientTransformation) -> Compiled:
        def step(params: Any, state: Any, batch: jax.Array) -> Any:
            loss, grads = jax.value_and_grad(partial(decoder.loss, sizes))(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        state = layout.state_like(jax.eval_shape(tx.init, params), params, mesh)
        out = (own, layout.shardings(state), NamedSharding(mesh, P()))
        f = jax.jit(step, donate_argnums=(0, 1), out_shardings=out)
        return _compiled(f, params, state, batch)

    def update(state: Any, params: Any, step: jax.Array) -> Any:
        return gmp.update(state, params, step=step, grads=None, opt_state=None)

    with jax.set_mesh(mesh):
        masks = layout.state_like(jax.eval_shape(gmp.init, params), params, mesh)
        alone = jax.jit(update, donate_argnums=0, out_shardings=layout.shardings(masks))
        return {
            "dense": of_step(adam),
            "sparse": of_step(jp.sparsify(adam, jp.every(every, gmp))),
            "update": _compiled(alone, masks, params, jax.ShapeDtypeStruct((), jnp.int32)),
        }


def compile_calibration(sizes: decoder.Sizes, devices: int, tokens: int) -> dict[str, Compiled]:
    """The pass of the loss, `statistics`, and `prune_in_order` by 2:4 Wanda, over one batch.

    Args:
      devices: of the mesh; see `shape_of`.
      tokens: of a sequence; each device of the data axis has one.
    """
    mesh, params, batch = _laid_out(sizes, devices, tokens)
    fn = partial(decoder.loss, sizes)
    wanda = jp.calibration.wanda((2, 4))

    def statistics(params: Any, batch: jax.Array) -> Any:
        return jp.calibration.statistics(fn, params, [batch])

    def in_order(params: Any, batch: jax.Array) -> Any:
        return jp.calibration.prune_in_order(fn, params, [batch], wanda)

    with jax.set_mesh(mesh):
        pruned = layout.state_like(jax.eval_shape(in_order, params, batch), params, mesh)
        out = layout.shardings(pruned)
        return {
            "forward": _compiled(jax.jit(fn), params, batch),
            "statistics": _compiled(jax.jit(statistics), params, batch),
            "in_order": _compiled(
                jax.jit(in_order, donate_argnums=0, out_shardings=out), params, batch
            ),
        }


def _laid_out(sizes: decoder.Sizes, devices: int, tokens: int) -> tuple[Any, Any, Any]:
    """The mesh, and the shapes of params and of a batch on it."""
    axes = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh(shape_of(devices), ("data", "model"), axis_types=axes)
    params = layout.on_mesh(decoder.shapes(sizes), decoder.specs(), mesh)
    own = NamedSharding(mesh, P("data"))
    shape = mesh.shape["data"], tokens + 1
    return mesh, params, jax.ShapeDtypeStruct(shape, jnp.int32, sharding=own)


def shape_of(devices: int) -> tuple[int, int]:
    """Of a mesh, (data, model): as alike as they can be, data the longer."""
    model = next(n for n in range(math.isqrt(devices), 0, -1) if devices % n == 0)
    return devices // model, model


def _compiled(f: Any, *shapes: Any) -> Compiled:
    began = time.perf_counter()
    program = f.lower(*shapes).compile()
    seconds = time.perf_counter() - began
    memory, moved = program.memory_analysis(), collectives.read(program.as_text())
    return Compiled(
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        moved.always,
        moved.in_branches,
        round(seconds, 1),
    )


PARTS: dict[str, Callable[..., dict[str, Compiled]]] = {
    "training": compile_all,
    "calibration": compile_calibration,
}


def main(argv: list[str]) -> None:
    """Reads a part and its arguments as JSON, and prints its result."""
    wanted = json.loads(argv[1])
    wanted["sizes"] = decoder.Sizes(**wanted["sizes"])
    found = PARTS[argv[0]](**wanted)
    print(json.dumps({name: to_dict(own) for name, own in found.items()}))


def to_dict(own: Compiled) -> dict[str, Any]:
    """As JSON takes it."""
    plain = lambda moved: {kind: m._asdict() for kind, m in moved.items()}
    return {
        **own._asdict(),
        "always": plain(own.always),
        "in_branches": plain(own.in_branches),
    }


def from_dict(own: dict[str, Any]) -> Compiled:
    """The inverse of `to_dict`."""
    moved = {
        key: {kind: collectives.Moved(**m) for kind, m in own[key].items()}
        for key in ("always", "in_branches")
    }
    return Compiled(**{**own, **moved})


if __name__ == "__main__":
    main(sys.argv[1:])
