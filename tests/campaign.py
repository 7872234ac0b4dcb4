"""Runs that are killed at any moment end as if they had not been: `python -m tests.campaign`.

Each run is killed with SIGKILL and resumed, again and again, until it comes to its end; its metrics
and its network then have the bits of a run that was left alone. Half of the kills come with a file
operation of the run (most are inside saves), the others at a time. Processes are forked from this
one, which has imported everything and started nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from recipes import dynamic, gmp, soup
from recipes.common import checkpoints, folder

TINY = "--seeds 2 --train-examples 128 --width 0.05 --batch-size 32 --checkpoint-every 0"
PAIR = f"{TINY} --steps 30 --log-every 3 --evaluations 3 --every 2 --sparsity 0.8"
SOUP = "--steps 12 --log-every 3 --retrain 0.5 --children 2 --sparsities 0.5 0.8 --points 3"
RUNS = {
    "gmp": (gmp, PAIR),
    "dynamic": (dynamic, f"{PAIR} --method rigl"),
    "soup": (soup, f"{TINY} {SOUP}"),
}
CLOCKS = ("seconds", "phase_seconds", "training_seconds", "pruning_seconds", "peak_memory_bytes")
FORK = multiprocessing.get_context("fork")


class Kill(NamedTuple):
    """When a process is killed: at a file operation in its folder, or after so many seconds."""

    operation: int | None = None
    seconds: float | None = None


NEVER = Kill()


class Alone(NamedTuple):
    """A run that was left alone."""

    out: Path
    operations: int  # in its folder
    seconds: float


def campaign(name: str, within: Path, kills: int, seed: int) -> str:
    """Kills processes of a kind of run `kills` times, in words; AssertionError if bits differ."""
    chance, began = random.Random(f"{seed} {name}"), time.monotonic()
    out = within / f"{name}-alone"
    assert process(name, out) == 0, log(out)
    alone = Alone(out, int(beside(out, "operations").read_text()), time.monotonic() - began)
    killed = inside = runs = 0
    while killed < kills or runs == 0:
        runs += 1
        out, code = within / f"{name}-{runs}", -1
        while code:
            kill = NEVER
            if killed < kills and killed % 2:  # once compiled, it takes a third of the time
                kill = Kill(seconds=chance.uniform(0, alone.seconds / 3))
            elif killed < kills:
                kill = Kill(operation=chance.randint(1, alone.operations // 2))
            code = process(name, out, alone, kill)
            assert code in (0, -signal.SIGKILL), f"{name}: {code}, {kill}: {log(out)}"
            killed += code != 0
            inside += code != 0 and in_a_save(out)
    return (
        f"{name}: {killed} kills, {inside} of them inside a save; {runs} runs came to their end "
        f"with the bits of one that was left alone; {time.monotonic() - began:.0f} s"
    )


def in_a_save(out: Path) -> bool:
    """Whether a checkpoint was begun and is not whole."""
    return any((out / folder.CHECKPOINT).glob("*.orbax-checkpoint-tmp"))


def process(name: str, out: Path, alone: Alone | None = None, kill: Kill = NEVER) -> int:
    """Begins or resumes a run in a process of its own; its exit code."""
    child = FORK.Process(target=train, args=(name, out, alone, kill))
    child.start()
    child.join(kill.seconds)
    if child.exitcode is None:
        if kill.seconds is not None:
            child.kill()
        child.join()
    return child.exitcode


def train(name: str, out: Path, alone: Alone | None, kill: Kill) -> None:
    """What a process does: it trains to the end, and looks whether that is the end it should be."""
    beside(out, "log").parent.mkdir(exist_ok=True)
    said = os.open(beside(out, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    count_operations(out, kill.operation)
    jax.config.update("jax_compilation_cache_dir", str(out.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    recipe, flags = RUNS[name]
    if (out / folder.CONFIG).is_file():
        flags = "--resume"
    if not (out / folder.SUMMARY).is_file() or (out / folder.CHECKPOINT).is_dir():
        recipe.main([*flags.split(), "--out", str(out)])
    if alone:
        assert_same(out, alone.out)


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


def log(out: Path) -> str:
    """The last of what the processes of a run said."""
    return beside(out, "log").read_text()[-2000:]


def assert_same(out: Path, other: Path) -> None:
    """Metrics, summary and network of two runs have the same bits; nothing is left over."""
    assert without_clocks(folder.read_lines(out / folder.METRICS)) == without_clocks(
        folder.read_lines(other / folder.METRICS)
    ), f"metrics of {out}"
    summaries = (json.loads((run / folder.SUMMARY).read_text()) for run in (out, other))
    assert without_clocks(next(summaries)) == without_clocks(next(summaries)), f"summary of {out}"
    names = [sorted(path.name for path in run.iterdir()) for run in (out, other)]
    assert names[0] == names[1], f"files of {out}: {names[0]}"
    models = [path.parent for path in (other / folder.MODEL).rglob("_CHECKPOINT_METADATA")]
    assert models
    for model in models:
        networks = [checkpoints.load_model(p) for p in (out / model.relative_to(other), model)]
        jax.tree.map(np.testing.assert_array_equal, *networks)


def without_clocks(told):
    """Without what no two runs have in common."""
    if isinstance(told, dict):
        return {k: without_clocks(v) for k, v in told.items() if k not in CLOCKS}
    return [without_clocks(value) for value in told] if isinstance(told, list) else told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=7, help="of each kind of run (default: 7)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # JAX has not started yet
    with tempfile.TemporaryDirectory() as within:
        for name in RUNS:
            print(campaign(name, Path(within), asked.kills, asked.seed), flush=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:.0f} s of CPU")


if __name__ == "__main__":
    main()
