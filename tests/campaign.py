"""Runs that are killed at any moment end as if they had not been: `python -m tests.campaign`.

Each run is killed with SIGKILL and resumed, again and again, until it comes to its end; its metrics,
its summary and its network then have the bits of a run that was left alone. A half of the kills
come with a file operation of the run (inside saves, for there most of them are), the others at a
time. Processes are forked from one that has imported everything and started nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from recipes import dynamic, gmp, soup
from recipes.common import checkpoint, run

TINY = "--seeds 2 --train-examples 128 --width 0.05 --batch-size 32 --checkpoint-every 0".split()
PAIR = [*TINY, *"--steps 30 --log-every 3 --evaluations 3 --every 2 --sparsity 0.8".split()]
SOUP = "--steps 12 --log-every 3 --retrain 0.5 --children 2 --sparsities 0.5 0.8 --points 3".split()
RUNS = {
    "gmp": (gmp, PAIR),
    "dynamic": (dynamic, [*PAIR, "--method", "rigl"]),
    "soup": (soup, [*TINY, *SOUP]),
}
CLOCKS = ("seconds", "phase_seconds", "training_seconds", "peak_memory_bytes")


class Kill(NamedTuple):
    """When a process is killed: at a file operation in its folder, or after so many seconds."""

    operation: int | None = None
    seconds: float | None = None


class Alone(NamedTuple):
    """A run that was left alone."""

    out: Path
    operations: int  # in its folder
    seconds: float  # that its process took, with programs that were compiled before


def campaign(folder: Path, kills: int, seed: int = 0, say=lambda line: None) -> dict[str, int]:
    """Kills each kind of run `kills` times; how many came to their end, all with the same bits.

    Raises AssertionError where they differ, or a process ends otherwise than killed or well.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.campaign"])
    chance, ended = random.Random(seed), {}
    for name in RUNS:
        began = time.monotonic()
        alone = left_alone(context, name, folder)
        say(f"{name}: {alone.operations} file operations, {alone.seconds:.1f} s if left alone")
        ended[name] = lives(context, name, folder, alone, kills, chance)
        took = time.monotonic() - began
        say(f"{name}: {kills} kills, {ended[name]} runs to the end, same bits: {took:.0f} s")
    return ended


def left_alone(context, name: str, folder: Path) -> Alone:
    """Once to compile and once to measure; that these two are equal is no more than due."""
    first, out = folder / f"{name}-first", folder / f"{name}-alone"
    assert process(context, name, first, folder) == 0, log(first)
    began = time.monotonic()
    assert process(context, name, out, folder) == 0, log(out)
    seconds = time.monotonic() - began
    assert_same(out, first)
    return Alone(out, int(operations(out).read_text()), seconds)


def lives(context, name, folder, alone: Alone, kills: int, chance: random.Random) -> int:
    """How many runs came to their end, when `kills` processes of them were killed."""
    killed = life = 0
    while killed < kills or life == 0:
        life += 1
        out = folder / f"{name}-{life}"
        while True:
            kill = Kill()
            if killed < kills and killed % 2:
                kill = Kill(seconds=chance.uniform(0, alone.seconds))
            elif killed < kills:
                kill = Kill(operation=chance.randint(1, alone.operations // 2))
            code = process(context, name, out, folder, kill)
            assert code in (0, -signal.SIGKILL), f"{name}: {code}, {kill}: {log(out)}"
            killed += code != 0
            if code == 0:
                break
        assert_same(out, alone.out)
    return life


def process(context, name: str, out: Path, folder: Path, kill: Kill = Kill()) -> int:
    """Begins or resumes a run in a process of its own; its exit code."""
    child = context.Process(target=train, args=(name, out, folder / "cache", kill))
    child.start()
    child.join(kill.seconds)
    if child.exitcode is None:
        if kill.seconds is not None:
            child.kill()
        child.join()
    return child.exitcode


def train(name: str, out: Path, cache: Path, kill: Kill) -> None:
    """What a process does."""
    beside(out, "log").parent.mkdir(parents=True, exist_ok=True)
    said = os.open(beside(out, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    count_operations(out, kill.operation)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    recipe, flags = RUNS[name]
    if (out / run.CONFIG).is_file():
        finished = (out / run.SUMMARY).is_file() and not (out / run.CHECKPOINT).is_dir()
        flags = None if finished else ["--resume"]
    if flags is not None:  # else it was killed just before it would have ended
        recipe.main([*flags, "--out", str(out)])


def count_operations(out: Path, kill_at: int | None) -> None:
    """Counts file operations in `out`, in a file beside it; kills this process at one of them."""
    inside, count, lock = str(out), 0, threading.Lock()

    def hear(event: str, args: tuple) -> None:
        nonlocal count
        if not event.startswith(("open", "os.", "shutil.")):
            return
        if not any(isinstance(arg, (str, os.PathLike)) and inside in str(arg) for arg in args):
            return
        with lock:
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if kill_at is None:
                os.pwrite(written, f"{count}".encode(), 0)

    written = os.open(beside(out, "operations"), os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(hear)


def beside(out: Path, what: str) -> Path:
    return out.parent / "said" / f"{what}.{out.name}"


def operations(out: Path) -> Path:
    return beside(out, "operations")


def log(out: Path) -> str:
    """The last of what the processes of a run said."""
    return beside(out, "log").read_text()[-2000:]


def assert_same(out: Path, other: Path) -> None:
    """Metrics, summary and network of two runs have the same bits; nothing is left over."""
    assert without_clocks(run.read_lines(out / run.METRICS)) == without_clocks(
        run.read_lines(other / run.METRICS)
    ), f"metrics of {out}"
    summaries = (json.loads((folder / run.SUMMARY).read_text()) for folder in (out, other))
    assert without_clocks(next(summaries)) == without_clocks(next(summaries)), f"summary of {out}"
    names = [sorted(path.name for path in folder.iterdir()) for folder in (out, other)]
    assert names[0] == names[1], f"files of {out}: {names[0]}"
    models = [path.parent for path in (other / run.MODEL).rglob("_CHECKPOINT_METADATA")]
    assert models
    for model in models:
        networks = [checkpoint.load_model(p) for p in (out / model.relative_to(other), model)]
        jax.tree.map(np.testing.assert_array_equal, *networks)


def without_clocks(told):
    """Without what no two runs have in common."""
    if isinstance(told, dict):
        return {k: without_clocks(v) for k, v in told.items() if k not in CLOCKS}
    return [without_clocks(value) for value in told] if isinstance(told, list) else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=8, help="of each kind of run (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign(Path(folder), asked.kills, asked.seed, lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
