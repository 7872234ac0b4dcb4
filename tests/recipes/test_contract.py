"""What every recipe that trains promises: what it writes, keeps, survives, and says."""

import re
import shutil

import pytest

from recipes.__main__ import studies
from recipes.common import flags, folder
from recipes.common.figures import style
from tests.quick import quick
from tests.recipes import running
from tests.recipes.cases import CASES, Case

FILES = ["config.yaml", "metrics.jsonl", "model", "plots", "report.md", "summary.json"]

# These compile in seconds; the others take longer, and run the same engine.
SOON = ("gmp", "soup")

every_recipe = pytest.mark.parametrize("name", quick(CASES, *SOON))


@every_recipe
def test_it_writes_everything(name, run):
    case, out = CASES[name], run(name).out
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, *case.files])
    for picture in case.pictures.split():
        assert (out / "plots" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    report = (out / folder.REPORT).read_text()
    for text in case.report:
        assert text in report


@every_recipe
def test_accuracies_are_those_of_the_saved_networks_on_test_data(name, run):
    arms = run(name).summary.get("arms", {})
    for arm in (path.name for path in (run(name).out / folder.MODEL).iterdir()):
        numbers = arms.get(arm, {})
        if isinstance(numbers, list):  # of phases; the last is saved, at its end
            told = numbers[-1]["end_test_accuracy"]["per_seed"]
        else:
            told = numbers.get("test_accuracy", {}).get("per_seed")
        if told is not None:
            assert told == running.test_accuracies(run(name).out, arm), arm
    if "sparse" in arms and name != "landscape":
        told = arms["sparse"]["test_accuracy"]["per_seed"]
        assert told == running.test_accuracies(run(name).out)


@every_recipe
def test_a_finished_run_is_kept(name, run, capsys):
    before = (run(name).out / folder.SUMMARY).read_bytes()
    capsys.readouterr()  # of the run itself, where this test is the first to ask for it
    argv = [*CASES[name].flags.split(), "--out", str(run(name).out)]
    assert running.exit_code(CASES[name].module, *argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --out") and "--overwrite" in said and said.count("\n") == 1
    assert (run(name).out / folder.SUMMARY).read_bytes() == before


@pytest.mark.parametrize("name", quick(CASES, "gmp", "soup"))
def test_an_interrupted_run_of_its_configuration_goes_on_to_the_same_bits(
    name, run, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(style, "png", lambda figure: b"")  # drawn by the run that is not stopped
    case, finished, out = CASES[name], run(name).out, tmp_path / "again"
    argv = ["--config", str(finished / folder.CONFIG), "--out", str(out), *case.again.split()]
    go_on = ["--out", str(out), "--resume"]

    def wanted():
        keys = {"step", "dense", *case.arms}
        if not case.arms:
            return running.records(finished)
        return [{k: r[k] for k in r if k in keys} for r in running.records(finished)]

    for i, stop in enumerate(case.stops):
        assert running.interrupted(case.module, go_on if i else argv, **stop) == 130
        last_line = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.search(
            rf"stopped after \d+ steps; the checkpoint is in {out}/checkpoint/", last_line
        )
        assert last_line.endswith(f"go on with: python -m recipes.{name} --out {out} --resume")
        logged = running.records(out)
        assert logged == wanted()[: len(logged)] and len(logged) < len(wanted())
        assert not (out / folder.SUMMARY).exists()
    shutil.copytree(out, tmp_path / "copy")
    others = ["--out", str(tmp_path / "copy"), "--resume", "--seeds", "4"]
    assert running.exit_code(case.module, *others) == 2
    assert "with other settings than those of the run: --seeds" in capsys.readouterr().err

    (out / folder.METRICS).unlink()  # the checkpoint has its lines
    case.module.main(go_on)
    assert running.records(out) == wanted()
    running.same_models(out, finished)
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, *case.files])


# name -> training programs that were compiled up to each line of metrics.jsonl
PROGRAMS = {
    "gmp": [2, 2, 2],
    "small_dense": [3, 3, 3],
    "plasticity": [1, 2, 2],  # one for all copies
    "dynamic": [10, 10, 10],
    "random_erk": [7, 7, 7],
    "allocations": [1, 1, 1],
    # masks move without another program; the arrays of gradual pruning become smaller
    "block_training": [7, 8, 9],
    "nm": [6, 6, 6],
    "prune_at_init": [2, 2, 2],  # methods that differ in their start share one
    "gates": [4, 4, 4],
    "connectivity": [2, 2],
    "language": [1, 1, 1],
    "one_shot": [1, 1, 1, *[2] * 6],  # a repair
    "stability": [3, 4, 4],
    "soup": [1, 2, 2],
    "gmp_soup": [1, 1, 1],
    "quantize": [2, 2, 3, 4],  # training to 2:4 has its program
    "intrinsic": [1, 2, 2],  # one for all dimensions
    "sharing": [5, 5, 5],  # what is pruned at first shares one
    "codesign": [1, 1, 3, 3],  # the search has one, stage 2 one for each number of bits
    "select_features": [1, 2, 2, 2],
    "tickets": [1, 2, 2, 2],
    "layers": [1, 2, 3, 3, 3, 3, 3],  # one for each depth
    "structured": [1, 2, 2],
    "distill_pruned": [1, 2],
    "relaxation": [1, 1, 1, 1, 2],  # the last stage ends with a shorter chunk
}


@pytest.mark.parametrize("name", quick(PROGRAMS, *SOON))
def test_each_training_program_is_compiled_once_for_all_phases(name, run):
    assert run(name).programs == PROGRAMS[name]


@pytest.mark.parametrize("name", studies())
def test_help_tells_every_flag_and_every_choice(name, capsys):
    module = Case(name, "").module
    assert running.exit_code(module, "--help") == 0
    said = re.sub(r"[\s│]", "", capsys.readouterr().out)  # a long list of choices is broken
    for flag in flags.flags_of(module.Config):
        if not flag.hidden:
            assert flags.flag_of(flag.name) in said
            for rule in flag.rules:
                assert rule.metavar.replace(" ", "") in said


@pytest.mark.parametrize("name", studies())
def test_the_defaults_are_no_mistake(name):
    flags.check(Case(name, "").module.Config())
