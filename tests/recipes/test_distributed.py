"""One model over several processes: whole runs with real ones, and what a single one can show."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from jax.sharding import PartitionSpec as P

from recipes import distributed
from recipes.common import folder
from recipes.common.folder import RecipeError
from recipes.sharded import checkpoints, layout, processes
from tests.recipes.running import exit_code

SHORT = ["--steps", "16", "--every", "4", "--checkpoint-every", "4", "--log-every", "2"]
BITS = ("params_sha256", "masks_sha256", "loss", "sparsity")


def started(*flags):
    """The command as users give it."""
    command = (sys.executable, "-m", "recipes.distributed", *flags)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def summary_of(out):
    return yaml.safe_load((out / folder.SUMMARY).read_text())


@pytest.mark.full
def test_killed_processes_go_on_to_the_bits_of_one(tmp_path):
    """Two processes are killed (-9), and resumed; one process trains without a break."""
    two, one = tmp_path / "two", tmp_path / "one"
    alone = started(*SHORT, "--processes", "1", "--out", str(one))
    first = started(*SHORT, "--processes", "2", "--out", str(two))
    while len(folder.read_lines(two / folder.METRICS)) < 3:  # 6 steps; the checkpoint is of 4
        assert first.poll() is None, first.stdout.read().decode()
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(first.pid)], capture_output=True, text=True)
    for child in children.stdout.split():
        os.kill(int(child), signal.SIGKILL)
    first.communicate(timeout=60)
    assert first.returncode != 0 and not (two / folder.SUMMARY).exists()

    again = started("--processes", "2", "--resume", "--out", str(two))
    for process in (again, alone):
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said.decode()
    assert summary_of(two)["processes"] == 2 and summary_of(one)["processes"] == 1
    assert [summary_of(two)[key] for key in BITS] == [summary_of(one)[key] for key in BITS]
    assert folder.read_lines(two / folder.METRICS) == folder.read_lines(one / folder.METRICS)


# --- one process with the eight devices of the tests ---------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """No cluster is looked for: devices are in use already."""
    monkeypatch.setattr(processes, "join", lambda: None)


@pytest.mark.full
def test_a_run_that_is_stopped_ends_with_the_same_bits(alone, tmp_path, monkeypatch, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    distributed.main([*SHORT, "--out", str(whole)])
    append = folder.append

    def append_and_stop(path, record):
        append(path, record)
        if record["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "append", append_and_stop)
        assert exit_code(distributed, *SHORT, "--out", str(stopped)) == 128 + signal.SIGTERM
    assert "stopped after step 6; go on with --resume" in capsys.readouterr().err
    distributed.main(["--resume", "--out", str(stopped)])
    assert [summary_of(stopped)[key] for key in BITS] == [summary_of(whole)[key] for key in BITS]
    assert summary_of(whole)["sparsity"] == pytest.approx(0.8, abs=1e-4)
    assert folder.read_lines(stopped / folder.METRICS) == folder.read_lines(whole / folder.METRICS)

    # another model: its first leaf that differs is named, and nothing is written
    assert exit_code(distributed, "--resume", "--width", "0.5", "--out", str(whole)) == 2
    said = capsys.readouterr().err
    assert "at 'params/Dense_0/bias' it has (256,) float32, and this run (128,) float32" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model-axis", "3"], "--model-axis 3 does not divide the 8 devices of all 1 processes"),
        (["--batch-size", "6"], "--batch-size 6 can't be split over the 4 devices"),
        (["--batch-size", "4000"], "more than all 1,437 examples"),
        (
            ["--width", "0.99"],
            "'Dense_0/bias' has shape (253,), and axis 0, of 253, can't be split",
        ),
        (["--processes", "3"], "--devices 4 can't be shared by --processes 3"),
        (["--sparsity", "90"], "--sparsity must be in [0, 1)"),
    ],
)
def test_bad_input(alone, flags, message, tmp_path, capsys):
    assert exit_code(distributed, *flags, "--out", str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_state_is_restored_on_another_mesh(tmp_path):
    """As after a change of the number of processes: arrays are whole, however they lie."""

    def laid_out(shape):
        mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        like = {"w": jax.ShapeDtypeStruct((8, 16), jnp.float32), "mask": jnp.zeros((8, 16), bool)}
        return layout.on_mesh(like, {"w": P("data", "model"), "mask": P("model")}, mesh)

    like = laid_out((2, 4))
    w = np.arange(128, dtype=np.float32).reshape(8, 16)
    state = jax.device_put({"w": w, "mask": w > 5}, layout.shardings(like))
    with checkpoints.manager(tmp_path, 1) as saves:
        with pytest.raises(RecipeError, match="there is no checkpoint"):
            checkpoints.restore(saves, like)
        checkpoints.save(saves, 3, state)
        saves.wait_until_finished()
        step, again = checkpoints.restore(saves, laid_out((8, 1)))
        assert step == 3 and again["w"].sharding.mesh.shape == {"data": 8, "model": 1}
        jax.tree.map(np.testing.assert_array_equal, again, {"w": w, "mask": w > 5})
        with pytest.raises(RecipeError, match="at 'v' it has no such leaf, and this run"):
            checkpoints.restore(saves, {**like, "v": like["w"]})
    bare = ocp.StandardCheckpointer().restore(tmp_path / "3" / "default")
    np.testing.assert_array_equal(bare["w"], w)


def test_a_state_lies_like_its_params():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    params = layout.on_mesh(
        {"a": {"kernel": jnp.ones((4, 8))}, "kernel": jnp.ones((4, 8))},
        {"a": {"kernel": P("data")}, "kernel": P(None, "model")},
        mesh,
    )
    state = {"nu": params, "rows": {"a": {"kernel": jnp.ones(4)}}, "count": jnp.zeros(())}
    placed = layout.state_like(state, params, mesh)
    specs = {name: x.sharding.spec for name, x in layout.by_name(placed).items()}
    assert specs == {
        "nu/a/kernel": P("data"),
        "nu/kernel": P(None, "model"),
        "rows/a/kernel": P(),
        "count": P(),
    }
