"""Checkpoints of arrays that are spread over processes: each writes and reads its own part.

Unlike `recipes.common.checkpoints`, which packs masks on one host, this keeps them as they lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from recipes.common.folder import RecipeError
from recipes.sharded.layout import by_name


def manager(folder: Path, keep: int) -> ocp.CheckpointManager:
    """The manager of a run: it keeps the last `keep` checkpoints, written behind training."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
    handler = ocp.StandardCheckpointHandler()  # by which metadata are read before arrays are
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handler)


def save(checkpoints: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Begins to write the state of `step`, unless it is there; all processes call it."""
    if step not in checkpoints.all_steps():
        checkpoints.save(step, args=ocp.args.StandardSave(state))


def restore(checkpoints: ocp.CheckpointManager, like: Any) -> tuple[int, Any]:
    """(step, state) of the last checkpoint, laid out as `like`, whatever wrote it.

    `like` are ShapeDtypeStructs with shardings: of another mesh, or number of processes, than the
    state was saved from, if need be. Raises `RecipeError` if there is no checkpoint, or the first
    leaf that differs in path, shape or dtype.
    """
    step = checkpoints.latest_step()
    if step is None:
        raise RecipeError(f"there is no checkpoint in '{checkpoints.directory}'")
    saved = checkpoints.item_metadata(step)
    _check_same(f"{checkpoints.directory}/{step}", by_name(saved.tree), by_name(like))
    return step, checkpoints.restore(step, args=ocp.args.StandardRestore(like))


def _check_same(where: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in (*wanted, *saved):
        has, wants = (
            f"{tuple(t[name].shape)} {t[name].dtype}" if name in t else "no such leaf"
            for t in (saved, wanted)
        )
        if has != wants:
            raise RecipeError(
                f"the checkpoint in '{where}' is of another model or optimizer: at '{name}' it "
                f"has {has}, and this run {wants}; go on with the config.yaml that it came from"
            )
