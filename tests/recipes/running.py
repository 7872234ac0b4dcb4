"""Short runs of a recipe, in this process: what the tests of all recipes share."""

import itertools
import json
import os
import signal
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from recipes.common import checkpoints, cli, data, folder, lanes, models
from tests.campaign import without_clocks
from tests.recipes.cases import CASES, Case


class Run(NamedTuple):
    """A finished short run."""

    case: Case
    out: Any  # its folder
    programs: list[int]  # how many training programs were compiled up to each line it logged

    @property
    def summary(self):
        return json.loads((self.out / folder.SUMMARY).read_text())

    @property
    def records(self):
        return records(self.out)

    @property
    def config(self):
        return cli.from_yaml(self.case.module.Config, self.out / folder.CONFIG)

    def model(self, name=""):
        """(params, batch_stats, masks), each a stack over seeds."""
        return checkpoints.load_model(self.out / folder.MODEL / name)


class Straight:
    """A journal that trains at once."""

    def __init__(self):
        self.names = []

    def once(self, name, steps, state, train, words):
        self.names.append(name)
        return train(state, 0, lambda step, state: None)


def records(out):
    """The lines that a run logged, without its clocks."""
    return without_clocks(folder.read_lines(out / folder.METRICS))


def made(case, flags, out):
    """A run of a case in `out`, with these flags too; JAX reports what is compiled."""
    compiled, counts, append = [], [], folder.append

    def count(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration" and fun_name == "jit(steps)":
            compiled.append(fun_name)

    def append_and_count(path, record):
        append(path, record)
        counts.append(len(compiled))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(folder, "append", append_and_count)
            case.module.main([*case.flags.split(), *flags.split(), "--out", str(out)])
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    return Run(case, out, counts)


def varied(name, flags, out):
    """A short run of a recipe with other flags."""
    return made(CASES[name], flags, out)


def exit_code(recipe, *argv):
    """The exit code of a command that does not end well."""
    with pytest.raises(SystemExit) as stop:
        recipe.main(argv)
    return stop.value.code


def mistake(recipe, capsys, out, argv):
    """The one line on stderr, after exit code 2 and nothing written to `out`."""
    assert exit_code(recipe, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert list(out.iterdir()) == []
    return said


def interrupted(recipe, argv, when=None, call=None):
    """The exit code of a run in which Ctrl-C is pressed.

    Args:
      when: at the first line it logs that has these items; {} for the first line.
      call: after this call of the device, counted from 1.
    """
    append, advance, calls = folder.append, lanes.advance, itertools.count(1)
    press = lambda: os.kill(os.getpid(), signal.SIGINT)

    def append_and_press(path, record):
        append(path, record)
        if when is not None and when.items() <= record.items():
            press()

    def advance_and_press(*args, **how):
        for point in advance(*args, **how):
            if next(calls) == call:
                press()
            yield point

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "append", append_and_press)
        patch.setattr(lanes, "advance", advance_and_press)
        return exit_code(recipe, *argv)


def test_accuracies(out, model=""):
    """The accuracies (seeds,) of the networks that a run saved, computed without its code."""
    params, batch_stats, _ = checkpoints.load_model(out / folder.MODEL / model)
    return accuracies(out, params, batch_stats)


def accuracies(out, params, batch_stats):
    """The accuracies (seeds,) of networks on the test data of a run, computed without its code."""
    config = yaml.safe_load((out / folder.CONFIG).read_text())
    dataset = data.load(config["dataset"], train_examples=config["train_examples"])
    width = config.get("width", 1.0)
    module = models.model(config["model"], dataset.classes, config["norm"], width)

    def accuracy(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return (
            module.apply(variables, dataset.test.images).argmax(-1) == dataset.test.labels
        ).mean()

    found = jax.vmap(accuracy)(params, batch_stats).tolist()
    return pytest.approx(found, abs=1e-4)  # one example more is 1/360


def saved_models(out):
    """{path: arrays} of all models in the folder of a run."""
    paths = [path.parent for path in (out / folder.MODEL).rglob("_CHECKPOINT_METADATA")]
    return {str(p.relative_to(out)): ocp.StandardCheckpointer().restore(p) for p in paths}


def same_models(out, other):
    """Whether the models in `out`, at least one, have the same bits as those of `other`."""
    ours, theirs = saved_models(out), saved_models(other)
    assert ours and set(ours) <= set(theirs)
    for path, arrays in ours.items():
        jax.tree.map(np.testing.assert_array_equal, arrays, theirs[path])
