"""An `nnx` module of the kept neurons: small arrays, and layers that note the small sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxprune.coupling.expressions import Expr, Prod, resolved, size
from jaxprune.coupling.replay import Keep
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all
from jaxprune.structured.compact import shrink
from jaxprune.structured.kept import KeptLike, check_kept
from jaxprune.structured.retrace import retrace


class CompactModule(NamedTuple):
    """A smaller `nnx` module.

    Attributes:
      module: an `nnx.Module` of the same classes.
      differs: numbers that come from sizes, and differ from the masked network's: the n of a
        mean over a pruned axis, the root of a pruned head dimension. If empty, the module computes
        what the masked network does.
    """

    module: Any
    differs: tuple[str, ...]


def compact_module(
    structure: Structure,
    model: Any,
    kept: KeptLike,
    *,
    call: Callable[..., Any] = lambda model, *args: model(*args),
    resize: Callable[[str, Any], None] | None = None,
) -> CompactModule:
    """`model` with the kept neurons only, as an `nnx` module: to train, to edit, to save.

        graphdef, state = nnx.split(model)
        structure = analyze(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        small = compact_module(structure, model, kept).module

    `shrink` makes the arrays. Layers of flax note sizes too (`features`, `num_heads`,
    `feature_group_count`): these are read off the small arrays. Then the small module is traced
    and compared with the program that was analyzed, equation by equation, as `retrace` does.
    `model` stays as it is.

    Args:
      structure: of `analyze`, of all of the model's state.
      model: the module that was analyzed, with the state to make smaller.
      kept: bool (size,) by group, True = kept, not traced; no `Removal`.
      call: `(model, *args) -> Any`, how the model was called in the function that was analyzed.
      resize: `(path, module) -> None`, called for each module, the innermost last; it sets the
        sizes that your modules note: `if path == "mixer": module.width = 3`.

    Raises:
      ValueError: if the model's state is not what was analyzed, or the small module is another
        program, as where a size is written down in its code.
    """
    from flax import nnx

    graphdef, state = nnx.split(model)
    check_all("compact_module", structure, state)
    kept = check_kept(structure, kept)
    small = nnx.merge(graphdef, shrink(structure, state, kept))
    for parts, module in nnx.iter_modules(small):
        path = "/".join(map(str, parts))
        for attribute, value in _sizes(nnx, module, path, structure, kept.axes).items():
            setattr(module, attribute, value)
        if resize is not None:
            resize(path, module)
    graphdef = nnx.graphdef(small)
    try:
        found = retrace(structure, kept, lambda state, *xs: call(nnx.merge(graphdef, state), *xs))
    except ValueError as error:
        raise ValueError(
            f"compact_module: the small module does not run as the large one did: {error} Set the "
            "sizes that your modules note with resize=, say with call= how the model was "
            "called, or train compact(...).fn."
        ) from error
    return CompactModule(small, found.differs)


def _sizes(nnx: Any, module: Any, path: str, structure: Structure, keep: Keep) -> dict[str, Any]:
    """The sizes that a layer of flax notes, read off its arrays."""
    shape = lambda name: getattr(module, name).get_value().shape
    axis_of = lambda name, i: structure.axes[f"{path}/{name}".removeprefix("/")][i]
    if isinstance(module, nnx.Linear):
        return dict(zip(("in_features", "out_features"), shape("kernel"), strict=True))
    if isinstance(module, nnx.LinearGeneral):
        ends = len(shape("kernel")) - len(module.out_features)
        first = ends - len(module.in_features)
        return {"in_features": shape("kernel")[first:ends], "out_features": shape("kernel")[ends:]}
    if isinstance(module, nnx.Einsum):
        return {"kernel_shape": shape("kernel")}
    if isinstance(module, nnx.Conv):
        *_, inputs, outputs = shape("kernel")
        groups = _leading(keep, axis_of("kernel", -1), module.feature_group_count)
        return {
            "in_features": inputs * groups,
            "out_features": outputs,
            "feature_group_count": groups,
            "kernel_shape": shape("kernel"),
        }
    if isinstance(module, nnx.ConvTranspose):
        ends = shape("kernel")[-2:][:: -1 if module.transpose_kernel else 1]
        return {"kernel_shape": shape("kernel"), "in_features": ends[0], "out_features": ends[1]}
    if isinstance(module, nnx.Embed):
        return dict(zip(("num_embeddings", "features"), shape("embedding"), strict=True))
    if isinstance(module, nnx.MultiHeadAttention):
        inputs, heads, dims = module.query.kernel.get_value().shape
        keys, key_heads, _ = module.key.kernel.get_value().shape
        outputs = module.out.kernel.get_value().shape[-1]
        return {
            "in_features": inputs, "in_kv_features": keys, "out_features": outputs,
            "num_heads": heads, "num_kv_heads": key_heads, "head_dim": dims,
            "qkv_features": heads * dims,
        }  # fmt: skip
    if hasattr(module, "hidden_features"):  # recurrent cells
        recurrent = getattr(module, "dense_h", None) or getattr(module, "hi", None)
        return {"hidden_features": recurrent.kernel.get_value().shape[0]} if recurrent else {}
    name = next((n for n in ("scale", "bias", "mean") if _is_there(module, n)), None)
    if isinstance(module, nnx.GroupNorm) and name is not None:
        groups = _leading(keep, axis_of(name, 0), module.num_groups)
        return {"num_groups": groups, "group_size": shape(name)[0] // groups}
    if hasattr(module, "num_features") and name is not None:  # other norms
        return {"num_features": shape(name)[0]}
    return {}


def _is_there(module: Any, name: str) -> bool:
    return getattr(getattr(module, name, None), "get_value", lambda: None)() is not None


def _leading(keep: Keep, axis: Expr, n: int) -> int:
    """How many of the `n` outermost rows of an axis are left: groups of channels."""
    e = resolved(axis)
    factors = e.factors if isinstance(e, Prod) else (e,)
    for i in range(len(factors) + 1):
        if math.prod(map(size, factors[:i])) == n:
            return math.prod(map(keep.size, factors[:i]))
    return n
