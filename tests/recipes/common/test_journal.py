"""A toy run, stopped wherever it can be: it ends with the bits of one that was not."""

import errno
import fcntl
import itertools
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from recipes.common import checkpoints, cli, folder
from recipes.common.folder import RecipeError
from recipes.common.journal import Journal, journal, scalars
from recipes.common.terminal import Stopped

PROGRAM = f"python -m {__name__}"
CALLS = 9  # of the device, and settled states: 3 phases of 2 calls, each settled


@dataclass(frozen=True)
class Config:
    """What a toy run is asked."""

    out: Path
    sparsity: float = 0.9
    optimizer: str = "adam"
    overwrite: bool = False
    resume: bool = False
    allow_changes: bool = False
    checkpoint_every: float = 1e9
    keep_best: bool = False
    tensorboard: Path | None = None


SCORES = {4: (0.9, 0.7), 8: (0.9, 0.8), 12: (0.9, 0.8)}  # of a tie the earlier is the best


def toy(config, phases=3):
    """Each phase adds to a number in two calls of the device."""
    with journal(config) as kept:
        x = kept.last(np.zeros(2))
        for phase in range(len(kept.records), phases):

            def train(y, start, at):
                for step in range(start, 4, 2):
                    y = 3 * y + config.sparsity
                    at(step + 2, y)
                return y

            x = kept.once(f"phase {phase}", 4, np.ones(2) if x is None else x, train, "toy")
            kept.log({"phase": phase, "x": x.tolist(), "step": kept.step})
            kept.settle(x, score=SCORES[kept.step])
        return x, kept.records


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "alone"
    return *toy(Config(out)), (out / folder.METRICS).read_text()


def stop(monkeypatch, config, call, signum=signal.SIGTERM):
    """Runs until that call of the device, or settled state, and sends a signal."""
    calls, offer = itertools.count(1), Journal._offer

    def signal_and_offer(*args):
        if next(calls) == call:
            os.kill(os.getpid(), signum)
        offer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_offer", signal_and_offer)
        with pytest.raises(Stopped) as stopped:
            toy(config)
    return stopped.value


@pytest.mark.parametrize("call", range(1, CALLS + 1))
def test_it_goes_on_from_wherever_it_was_stopped(tmp_path, monkeypatch, alone, call):
    config = Config(tmp_path / "toy")
    said = str(stop(monkeypatch, config, call))
    step = 2 * (call - (call // 3))
    path = f"{config.out}/checkpoint/{step}"
    assert said.startswith(f"stopped after {step} steps; the checkpoint is in {path}; go on with: ")
    assert said.endswith(f"{PROGRAM} --out {config.out} --resume")
    folder.append(config.out / folder.METRICS, {"phase": "logged, and then killed"})
    x, records = toy(replace(config, resume=True))
    assert (x == alone[0]).all()
    assert records == alone[1]
    assert (config.out / folder.METRICS).read_text() == alone[2]


def test_it_is_saved_when_it_is_time_to(tmp_path, alone):
    config = Config(tmp_path / "often", checkpoint_every=0.0)
    toy(config)
    assert sorted(path.name for path in (config.out / folder.CHECKPOINT).iterdir()) == ["10", "12"]
    assert toy(replace(config, resume=True))[1] == alone[1]  # nothing is left to do
    config = Config(tmp_path / "never")
    toy(config)
    assert list((config.out / folder.CHECKPOINT).iterdir()) == []


@pytest.mark.parametrize("call", [None, 3, 5, 7])
def test_the_best_is_kept(tmp_path, monkeypatch, alone, call):
    config = Config(tmp_path / "toy", keep_best=True)
    if call:
        stop(monkeypatch, config, call)
    assert toy(replace(config, resume=call is not None))[1] == alone[1]
    assert [path.name for path in (config.out / folder.BEST).iterdir()] == ["8"]
    best = checkpoints.read(config.out / folder.BEST / "8")
    assert best.about["score"] == [0.9, 0.8]
    assert best.tree["settled"].tolist() == alone[1][1]["x"]


def test_the_clock_of_a_run_goes_on_where_it_was(tmp_path):
    config = Config(tmp_path / "toy", checkpoint_every=0.0)
    with journal(config) as kept:
        assert kept.seconds() < 100
        kept.log({"phase": 0, "seconds": 1000.0})
        kept.settle(np.ones(2), step=1)
    with journal(replace(config, resume=True)) as kept:
        assert 1000 <= kept.seconds() < 1100


def test_without_a_checkpoint_it_begins_again(tmp_path, capsys, alone):
    config = Config(tmp_path / "toy")
    folder.start(config.out, cli.to_yaml(config))
    folder.append(config.out / folder.METRICS, {"phase": "logged, and then killed"})
    assert toy(replace(config, resume=True))[1] == alone[1]
    assert f"'{config.out}' has no checkpoint yet: it begins again" in capsys.readouterr().err


def test_other_settings_are_refused_and_told(tmp_path, monkeypatch):
    config = Config(tmp_path / "toy")
    stop(monkeypatch, config, 4)
    other = replace(config, resume=True, sparsity=0.5, optimizer="sgd")
    with pytest.raises(
        RecipeError, match=r"--sparsity 0.9 -> 0.5, --optimizer adam -> sgd\. Leave"
    ):
        toy(other)
    (config.out / folder.CONFIG).write_text(cli.to_yaml(other))  # nor by the file
    with pytest.raises(RecipeError, match=r"--sparsity 0.9 -> 0.5.*--allow-changes"):
        toy(other)
    x, records = toy(replace(other, allow_changes=True))
    assert records[0]["x"] == [9 + 3 * 0.9 + 0.9] * 2  # what was done stays
    assert (x != 1056.6).all()
    told = (config.out / folder.CONFIG).read_text().splitlines()
    assert told[0] == "# from step 6 on --sparsity 0.9 -> 0.5, --optimizer adam -> sgd"
    assert "sparsity: 0.5" in told


def test_what_nothing_depends_on_may_change(tmp_path, monkeypatch, alone):
    config = Config(tmp_path / "toy")
    stop(monkeypatch, config, 5)
    config.out.rename(tmp_path / "moved")
    moved = Config(tmp_path / "moved", resume=True, checkpoint_every=3.0)
    assert toy(moved)[1] == alone[1]


def test_other_versions_are_told(tmp_path, monkeypatch, capsys):
    config = Config(tmp_path / "toy")
    stop(monkeypatch, config, 1)
    newer = {**folder.versions(), "jax": "99.0"}
    monkeypatch.setattr(folder, "versions", lambda: newer)
    toy(replace(config, resume=True))
    assert "was written with jax 0." in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_process_is_refused(tmp_path, resume):
    folder.start(tmp_path, cli.to_yaml(Config(tmp_path)))
    folder.unlock(tmp_path)
    other = os.open(tmp_path, os.O_RDONLY)  # as another process would
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(RecipeError, match="another process is writing to --out"):
        toy(Config(tmp_path, resume=resume))
    os.close(other)
    toy(Config(tmp_path, resume=resume, overwrite=not resume))


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch, alone):
    config = Config(tmp_path / "toy")
    stop(monkeypatch, config, 4)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RecipeError, match=r"can't write '.*': No space left on device"):
            toy(replace(config, resume=True))
    assert toy(replace(config, resume=True))[1] == alone[1]


def test_a_full_disk_replaces_nothing(tmp_path, monkeypatch):
    config = Config(tmp_path / "toy")
    toy(config)
    before = (config.out / folder.METRICS).read_text()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(RecipeError, match=r"can't write '.*config.yaml': No space left"):
            folder.start(config.out, "other: 1\n", overwrite=True)
    assert (config.out / folder.METRICS).read_text() == before
    assert "sparsity: 0.9" in (config.out / folder.CONFIG).read_text()


def test_tensorboard_has_the_numbers_of_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    events = tmp_path / "events"
    _, records = toy(Config(tmp_path / "toy", tensorboard=events))
    (file,) = events.iterdir()
    content, found = file.read_bytes(), []
    while content:  # a record: its length (8 bytes), a checksum (4), its bytes, a checksum (4)
        end = 12 + int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12:end])
        found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[end + 4 :]
    wanted = [(own["step"], *scalar) for own in records for scalar in scalars(own)]
    assert [own[:2] for own in found] == [own[:2] for own in wanted]
    assert [own[2] for own in found] == pytest.approx([own[2] for own in wanted])


def test_scalars_are_means_over_seeds():
    record = {"step": 4, "stage": "final", "arm": {"loss": [1.0, 2.0], "histogram": [[1.0]]}}
    assert dict(scalars(record)) == {"step": 4.0, "arm/loss": 1.5}
