"""The files that a run writes while it trains, metrics.jsonl and checkpoints: they always agree.

The rest of a run depends only on its checkpoint: networks, optimizers and masks, the step (with the
seed it gives the keys and the order of the data), the lines of metrics.jsonl, the configuration and
the versions. `--resume` restores metrics.jsonl as it was at the checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from recipes.common import cli, folder
from recipes.common.checkpoints import KEPT, Checkpoints, Saved
from recipes.common.folder import RecipeError
from recipes.common.terminal import Stopped, deferred_signals, progress

if TYPE_CHECKING:
    from recipes.common.settings import Settings

# Settings that may change on resume: no trained or logged number depends on them.
FREE = ("out", "data_dir", "checkpoint_every", "keep_best")

At = Callable[[int, Any], None]  # called with the step and the state of a training
Train = Callable[[Any, int, At], Any]  # (state, first step, at) -> state after training


@contextmanager
def journal(config: Settings) -> Iterator[Journal]:
    """Begins the run in `config.out`, or with `config.resume` goes on with it.

    Within it, Ctrl-C and SIGTERM end the run at the next point where it can be saved. Raises
    `RecipeError` if another process is at work there, and for another configuration on resume.
    """
    try:
        if config.resume:
            folder.lock(config.out)
            folder.check_out(config.out, resume=True)
        else:
            folder.start(config.out, cli.to_yaml(config), config.overwrite)
        with ExitStack() as stack:
            folders = {folder.CHECKPOINT: KEPT} | ({folder.BEST: 1} if config.keep_best else {})
            checkpoints = [
                stack.enter_context(closing(Checkpoints(config.out / name, keep)))
                for name, keep in folders.items()
            ]
            journal = Journal(config, checkpoints, stack.enter_context(deferred_signals()))
            if config.tensorboard:
                from tensorboardX import SummaryWriter

                # events of steps that are made again count no more
                board = SummaryWriter(str(config.tensorboard), purge_step=journal.step + 1)
                journal.board = stack.enter_context(closing(board))
            yield journal
    except BaseException:  # else it is held until the run is finished
        folder.unlock(config.out)
        raise


class Journal:
    """The journal of a run; made by `journal`.

    A run is a sequence of settled states; trainings (`once`) lead from one to the next. It can be
    saved after every call of the device, and is saved once `checkpoint_every` has passed.
    """

    def __init__(
        self,
        config: Settings,
        checkpoints: Sequence[Checkpoints],
        signalled: Callable[[], int | None],
    ):
        self.records: list[dict[str, Any]] = []  # the lines of metrics.jsonl
        self.step = 0  # steps trained so far, in all
        self.settled = 0  # how many states were settled
        self.board: Any = None  # a writer of TensorBoard events
        self._every, self._signalled = config.checkpoint_every, signalled
        self._out, self._checkpoints = config.out, checkpoints[0]
        self._best = checkpoints[1] if config.keep_best else None
        best = self._best.load() if self._best else None
        self._score: list[float] = best.about["score"] if best else []
        self._again = f"{cli.program(type(config))} --out {config.out} --resume"
        self._about: dict[str, Any] = {"config": cli.plain(config), "changes": []}
        self._settled: Any = None
        self._trained: dict[str, Any] = {}
        self._saved = self._resumed(config) if config.resume else None
        self._saved_at = time.monotonic()
        spent = self.records[-1].get("seconds", 0.0) if self.records else 0.0
        self._began = time.perf_counter() - spent

    def seconds(self) -> float:
        """Seconds since the run began; a resumed run adds the "seconds" of its last line."""
        return round(time.perf_counter() - self._began, 2)

    def log(self, record: dict[str, Any]) -> None:
        """Adds a line to metrics.jsonl."""
        self.records.append(record)
        folder.append(self._out / folder.METRICS, record)
        if self.board:
            for name, value in scalars(record):
                self.board.add_scalar(name, value, record.get("step", record.get("phase")))
            self.board.flush()

    def last(self, like: Any) -> Any | None:
        """The last settled state of a resumed run, in the structure of `like`; else None."""
        if self._saved and "settled" in self._saved.tree:
            self._settled = self._saved.like("settled", like)
        return self._settled

    def settle(self, state: Any, step: int | None = None, score: Sequence[float] = ()) -> None:
        """The rest of the run depends on `state` only; `step` where no `once` counts the steps.

        `--keep-best` keeps the state with the highest `score`.
        """
        self._settled, self._trained = state, {}
        self.settled += 1
        self._saved = None  # the checkpoint has been used
        self.step = self.step if step is None else step
        if self._best and list(score) > self._score:
            self._score = list(score)
            about = {**self._about, "score": self._score, "versions": folder.versions()}
            self._best.save(self.step, {"settled": state}, about)
        self._offer()

    def once(self, name: str, steps: int, state: Any, train: Train, words: str) -> Any:
        """`train(state, 0, at)`, in which `at` is called between calls of the device.

        On resume a finished training returns its result at once, and an unfinished one continues
        from its checkpoint; `state` then only lends its structure. No two trainings before the
        next `settle` share a `name`. The progress bar shows `words`.
        """
        start, saved = 0, self._saved
        if saved and name in saved.about["trained"]:
            self._trained[name] = saved.like(f"trained {name}", state)
            return self._trained[name]
        if saved and name == saved.about["training"]:
            start, state = saved.about["at"], saved.like("training", state)
        before = self.step - start

        def at(step: int, state: Any) -> None:
            show(step, words)
            self.step = before + step
            self._offer(name, step, state)

        with progress(name, steps, start) as show:
            state = train(state, start, at)
        self.step, self._trained[name] = before + steps, state
        return state

    def _offer(self, name: str | None = None, at: int = 0, state: Any = None) -> None:
        """Saves if it is time; after a signal it saves, and ends the run."""
        signum = self._signalled()
        due = time.monotonic() - self._saved_at >= self._every
        if (due or signum) and self.step > self._checkpoints.last:
            tree = {f"trained {done}": own for done, own in self._trained.items()}
            if self._settled is not None:
                tree["settled"] = self._settled
            if name is not None:
                tree["training"] = state
            about = {
                **self._about,
                "step": self.step,
                "settled": self.settled,
                "trained": list(self._trained),
                "training": name,
                "at": at,
                "metrics": self.records,
                "versions": folder.versions(),
            }
            self._checkpoints.save(self.step, tree, about)
            self._saved_at = time.monotonic()
        if signum:
            self._checkpoints.wait()
            path = self._out / folder.CHECKPOINT / str(self._checkpoints.last)
            raise Stopped(
                signum,
                f"stopped after {self.step:,} steps; the checkpoint is in {path}; go on with: "
                f"{self._again}",
            )

    def _resumed(self, config: Settings) -> Saved | None:
        """The checkpoint to continue from, if there is one; restores metrics.jsonl."""
        saved = self._checkpoints.load()
        if saved:
            before, self._about["changes"] = saved.about["config"], saved.about["changes"]
            self.records, self.step = saved.about["metrics"], saved.step
            self.settled = saved.about["settled"]
            _warn_of_versions(saved)
        else:
            before = cli.read_yaml(config.out / folder.CONFIG)
            print(f"'{config.out}' has no checkpoint yet: it begins again", file=sys.stderr)
        if changes := _changes(before, self._about["config"]):
            if not config.allow_changes:
                raise RecipeError(
                    f"--resume with other settings than those of the run: {', '.join(changes)}. "
                    "Leave them out, start anew with --overwrite, or go on by the new ones with "
                    "--allow-changes"
                )
            self._about["changes"].append(f"from step {self.step:,} on {', '.join(changes)}")
        notes = "".join(f"# {line}\n" for line in self._about["changes"])
        folder.write(config.out / folder.CONFIG, notes + cli.to_yaml(config))
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        folder.write(config.out / folder.METRICS, lines)
        return saved


def scalars(record: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """(name, value) of each number in a line of metrics.jsonl; of a list over seeds, the mean."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from scalars(value, f"{path}{key}/")
        elif isinstance(value, (int, float, list)) and value != [] and np.ndim(value) < 2:
            yield f"{path}{key}", float(np.mean(value))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that differ, in words; a setting that is new in this version had its default."""
    return [
        f"--{key.replace('_', '-')} {before[key]} -> {now[key]}"
        for key in now
        if key not in FREE and key in before and before[key] != now[key]
    ]


def _warn_of_versions(saved: Saved) -> None:
    now = folder.versions()
    if others := [f"{k} {v}" for k, v in saved.about["versions"].items() if now.get(k) != v]:
        print(
            f"'{saved.path}' was written with {', '.join(others)}: the bits may differ",
            file=sys.stderr,
        )
