"""The checkpoints of a run, and the models of finished runs, by orbax; a bool costs one bit.

Checkpoints are written while training continues. Each array has a checksum: a checkpoint that was
cut short, or in which a bit flipped, is noticed, and the one before it is read.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import LatestN

import jaxprune as jp
from recipes.common.folder import CONFIG, MODEL, RecipeError, reason, writing


def pack(tree: Any) -> Any:
    """`tree` on the host: each bool array as uint8 (ceil(size / 8),), each key as its data."""
    return jax.tree.map(_packed, tree)


def unpack(tree: Any, like: Any) -> Any:
    """The inverse of `pack`; `like` has the shapes and dtypes of the original."""
    return jax.tree.map(_unpacked, like, tree)


def packed_shape(x: Any) -> Any:
    """The shape and dtype of an array that `pack` makes."""
    if _is_key(x):
        return jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct((-(-x.size // 8),), np.uint8) if x.dtype == bool else x


def _packed(x: Any) -> np.ndarray:
    if _is_key(x):
        x = jax.random.key_data(x)
    return np.packbits(x) if x.dtype == bool else np.asarray(x)


def _unpacked(original: Any, x: np.ndarray) -> Any:
    if _is_key(original):
        return jax.random.wrap_key_data(jnp.asarray(x), impl=jax.random.key_impl(original))
    if original.dtype == bool:
        x = np.unpackbits(x, count=original.size).astype(bool).reshape(original.shape)
    # a copy: what orbax has read may lie in memory that is not a device's to donate
    return x if isinstance(original, np.ndarray) else jnp.array(x)


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def write(path: Path, tree: Any) -> None:
    """A pytree of arrays as a folder, whole or absent; it replaces what a stopped run left there.

    Raises `RecipeError` where it can't be written, such as on a full disk.
    """
    try:
        with writing(path, Exception), ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), tree, force=True)
    except RecipeError:
        for draft in path.parent.glob(f"{path.name}.orbax-checkpoint-tmp*"):
            shutil.rmtree(draft, ignore_errors=True)
        raise


def save_model(path: Path, params: Any, batch_stats: Any, masks: Any) -> None:
    """A network for use: parameters, running statistics, and masks (bool, None where unpruned)."""
    saved = {"params": params, "batch_stats": batch_stats, "masks": jp.export.pack(masks)}
    write(path, saved)


def load_model(path: Path) -> tuple[Any, Any, Any]:
    """(params, batch_stats, masks) of `save_model`; a mask has the shape of its parameter."""
    if not (path / "_METADATA").is_file():
        raise RecipeError(f"there is no model in '{path}'")
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(path.absolute())
    return saved["params"], saved["batch_stats"], jp.export.unpack(saved["masks"], saved["params"])


def load_masks(path: Path, like: Any) -> Any:
    """The masks of a saved model, or of a run that saved one model with masks.

    `like` are masks (networks, ...), whose leaves are None where a param is never pruned. A model
    of one network gives its masks to all. Raises `RecipeError`, which names the path, where there
    are no masks, or masks of another network or of another number of networks.
    """
    masks = load_model(_only_model(path))[2]
    saved, wanted = _by_name(masks), _by_name(like)
    if not saved:
        raise RecipeError(f"the model in '{path}' is dense: it has no masks")
    networks = len(next(iter(wanted.values())))
    one = all(len(mask) == 1 for mask in saved.values())
    shapes = {name: jax.ShapeDtypeStruct(x.shape[1:], bool) for name, x in saved.items()}
    here = {name: jax.ShapeDtypeStruct(x.shape[1:], bool) for name, x in wanted.items()}
    if different := _first_difference(shapes, here):
        raise RecipeError(f"the masks in '{path}' are of another network: {different}")
    numbers = {len(mask) for mask in saved.values()}
    if not one and numbers != {networks}:
        raise RecipeError(
            f"'{path}' has masks of {max(numbers)} networks, and this run has {networks}; take "
            f"--seeds {max(numbers)}"
        )
    each = [jnp.repeat(saved[name], networks if one else 1, axis=0) for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), each)


def _only_model(path: Path) -> Path:
    """The folder of a model, given it or a run; of several models in a run, the one with masks."""
    if not (path / CONFIG).is_file():
        return path
    folder = path / MODEL
    inside = sorted(p for p in folder.glob("*") if (p / "_METADATA").is_file())
    models = [folder] if (folder / "_METADATA").is_file() else inside
    sparse = [p for p in models if _by_name(load_model(p)[2])] if len(models) > 1 else models
    if len(sparse) != 1:
        seen = ", ".join(f"'{p}'" for p in sparse) or "none"
        raise RecipeError(f"the run '{path}' has not one model with masks but {seen}; name one")
    return sparse[0]


KEPT = 2  # where the last can't be read, the one before it can
TREE, ABOUT = "tree", "about"  # the parts of a checkpoint: arrays, and JSON


def _tell_once() -> None:
    """Silences the tracebacks that orbax logs beside what it raises.

    Where one array can't be read or written, tensorstore logs one more for each of the others.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    lost = "never retrieved"
    logging.getLogger("asyncio").addFilter(lambda record: lost not in record.getMessage())
    before = sys.unraisablehook

    def unraisable(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = unraisable


_tell_once()


class Saved(NamedTuple):
    """A checkpoint that was read: its step, arrays and words."""

    step: int
    tree: Any  # packed; NamedTuples as dicts of their fields
    about: dict[str, Any]
    path: Path

    def like(self, part: str, template: Any) -> Any:
        """`tree[part]`, unpacked, in the structure of `template`: arrays, or only their shapes.

        Raises `RecipeError` where paths, shapes or dtypes differ; it names the first.
        """
        saved, wanted = _by_name(self.tree[part]), _by_name(jax.tree.map(packed_shape, template))
        if different := _first_difference(saved, wanted):
            raise RecipeError(
                f"the checkpoint '{self.path}' is of another network or optimizer: {different}"
            )
        packed = [saved[name] for name in wanted]
        return unpack(jax.tree.unflatten(jax.tree.structure(template), packed), template)


class Checkpoints:
    """The last checkpoints of a run, numbered by its step; each is there whole or not at all.

    Writing goes on behind training. Nothing but this process may write to the folder.
    """

    def __init__(self, folder: Path, keep: int = KEPT):
        self.folder = folder
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep),
            cleanup_tmp_directories=True,  # of a save that was killed
            save_root_metadata=False,
            # in another thread, a folder that can't be made stops the program for minutes
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        with self._or_error():
            self._manager = ocp.CheckpointManager(
                folder.absolute(), options=options, item_names=(TREE, ABOUT)
            )

    @property
    def last(self) -> int:
        """The step of the last checkpoint; -1 where there is none."""
        step = self._manager.latest_step()
        return -1 if step is None else step

    def save(self, step: int, tree: Any, about: dict[str, Any]) -> None:
        """Copies `tree`, which may then be donated, and returns; the copy is written later.

        Raises `RecipeError` if this or the save before could not be written.
        """
        packed = pack(tree)
        about = {"said": about, "checksums": _checksums(packed, about)}
        with self._or_error():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{TREE: ocp.args.StandardSave(packed), ABOUT: ocp.args.JsonSave(about)}
                ),
            )

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits until all is written; raises `RecipeError` if it can't be."""
        with self._or_error():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads that write."""
        with self._or_error():
            self._manager.close()

    def load(self) -> Saved | None:
        """The last checkpoint that is whole; None without a checkpoint.

        A damaged one is renamed, with a line on stderr. Raises `RecipeError` if all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            path = self.folder / str(step)
            try:
                return read(path)
            except RecipeError as error:
                before = [s for s in steps if s < step]
                then = (
                    f"going on from '{self.folder / str(before[0])}'"
                    if before
                    else "there is none before it"
                )
                print(f"{error}; {then}", file=sys.stderr)
                path.replace(path.with_name(f"{step}.damaged"))
                self._manager.reload()
        if steps:
            raise RecipeError(
                f"no checkpoint in '{self.folder}' can be read; start anew with --overwrite"
            )
        return None

    @contextmanager
    def _or_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise of many kinds
            raise RecipeError(
                f"a checkpoint can't be written to '{self.folder}': {reason(error)}; what was "
                "saved before is still there: make room, and go on with --resume"
            ) from error


def read(path: Path) -> Saved:
    """The checkpoint in this folder, whose name is its step; no template is needed.

    Masks in its tree are packed, as `jp.export.pack` does it:
    `jp.export.unpack(jp.get_masks(opt_state), params)` unpacks them. Raises `RecipeError` if it is
    damaged or missing.
    """
    if not path.is_dir():
        raise RecipeError(f"there is no checkpoint '{path}'")
    try:
        handlers = {TREE: ocp.StandardCheckpointHandler(), ABOUT: ocp.JsonCheckpointHandler()}
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as checkpointer:
            restored = checkpointer.restore(path.absolute())
        tree, about = restored[TREE], restored[ABOUT]["said"]
        sums, written = _checksums(tree, about), restored[ABOUT]["checksums"]
        if wrong := [name for name in written if sums.get(name) != written[name]]:
            raise ValueError(f"'{wrong[0]}' is not what was written")
    except Exception as error:  # whatever reading damaged files comes to
        raise RecipeError(f"the checkpoint '{path}' is damaged ({reason(error)})") from error
    return Saved(int(path.name), tree, about, path)


def _checksums(packed: Any, about: dict[str, Any]) -> dict[str, int]:
    """A checksum of each leaf: orbax reads data with a flipped bit without complaint."""
    leaves = {name: np.ascontiguousarray(x).reshape(-1) for name, x in _by_name(packed).items()}
    data: dict[str, Any] = {name: x.view(np.uint8) for name, x in leaves.items()}
    data[ABOUT] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    return {name: zlib.crc32(own) for name, own in data.items()}


def _by_name(tree: Any) -> dict[str, Any]:
    """Leaves by path; the same for a NamedTuple and for the dict that it was saved as."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _first_difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    for name, leaf in wanted.items():
        if name not in saved:
            return f"it has no '{name}'"
        there, here = (f"{x.dtype} {x.shape}" for x in (saved[name], leaf))
        if there != here:
            return f"'{name}' is {there} there and {here} here"
    extra = [name for name in saved if name not in wanted]
    return f"it has '{extra[0]}', which is not needed here" if extra else ""
