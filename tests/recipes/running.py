"""Short runs of a recipe, in this process: what the tests of all recipes share."""

import itertools
import json
import os
import signal

import jax
import pytest
import yaml

from recipes.common import checkpoints, data, folder, lanes, models
from recipes.common.journal import Journal

SHORT = ["--seeds", "2", "--steps", "12", "--log-every", "4", "--evaluations", "3"]
SHORT += ["--train-examples", "256"]


def with_program(recipe, out, argv):
    """The folder of a run, and the program that trained its networks."""
    made, make = [], lanes.program
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            lanes, "program", lambda *args, **how: made.append(make(*args, **how)) or made[-1]
        )
        recipe.main([*argv, "--out", str(out)])
    (program,) = made
    return out, program


def exit_code(recipe, *argv):
    """That of a command which does not end well."""
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


def metrics(out):
    """What a run logged, without its clock."""
    records = folder.read_lines(out / folder.METRICS)
    for record in records:
        for arm in record.values():
            if isinstance(arm, dict):
                del arm["seconds"]
    return records


def interrupted(recipe, monkeypatch, argv, step=None, key="step", call=None):
    """Presses Ctrl-C when this step, or anything, is logged, or at a call of the device.

    The exit code. Calls are counted from 1, in this process.
    """
    append, offer = folder.append, Journal._offer
    calls = itertools.count(1)

    def append_and_interrupt(path, record):
        append(path, record)
        if call is None and (step is None or record[key] == step):
            os.kill(os.getpid(), signal.SIGINT)

    def interrupt_and_offer(*args):
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        offer(*args)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "append", append_and_interrupt)
        patch.setattr(Journal, "_offer", interrupt_and_offer)
        return exit_code(recipe, *argv)


def test_accuracies(out, model=""):
    """Those (seeds,) of the networks that a run has saved, computed here, without its code."""
    config = yaml.safe_load((out / folder.CONFIG).read_text())
    dataset = data.load(config["dataset"], train_examples=config["train_examples"])
    width = config.get("width", 1.0)
    module = models.model(config["model"], dataset.classes, config["norm"], width)
    params, batch_stats, _ = checkpoints.load_model(out / folder.MODEL / model)

    def accuracy(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return (
            module.apply(variables, dataset.test.images).argmax(-1) == dataset.test.labels
        ).mean()

    found = jax.vmap(accuracy)(params, batch_stats).tolist()
    return pytest.approx(found, abs=1e-4)  # one example more is 1/360


def wrote_everything(out, *pictures):
    """Whether the folder of a finished run has all its files and these plots; its report.

    Accuracies are on test data: those of the networks that were saved.
    """
    arms = json.loads((out / "summary.json").read_text()).get("arms", {})
    for arm in (own.name for own in (out / folder.MODEL).iterdir() if own.name in arms):
        numbers = arms[arm]
        if isinstance(numbers, list):  # of phases; the last is saved, at its end
            assert numbers[-1]["end_test_accuracy"]["per_seed"] == test_accuracies(out, arm), arm
        else:
            assert numbers["test_accuracy"]["per_seed"] == test_accuracies(out, arm), arm
    if "sparse" in arms:
        assert arms["sparse"]["test_accuracy"]["per_seed"] == test_accuracies(out)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "model",
        "plots",
        "report.md",
        "summary.json",
    ]
    for picture in pictures:
        assert (out / "plots" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    return (out / "report.md").read_text()
