"""Configurations from flags and files; mistakes are one line and exit code 2."""

import errno
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest

from recipes.common import cli, flags
from recipes.common.folder import RecipeError
from recipes.common.terminal import Stopped, deferred_signals


@dataclass(frozen=True)
class Config:
    """What a recipe needs."""

    dataset: Annotated[str, flags.choice(("digits", "mnist"))] = "digits"
    """What to learn."""
    data_dir: Annotated[Path | None, flags.default("none")] = None
    """Where it is."""
    steps: Annotated[int | None, flags.at_least(1), flags.default("as many as it takes")] = None
    """How long."""
    learning_rate: float = 1e-3
    """How fast.
    And how it falls."""
    sparsity: Annotated[float, flags.within("[0, 1)")] = 0.9
    """How much."""
    end: Annotated[float, flags.within("(sparsity, 1]")] = 1.0
    """Until when."""
    points: Annotated[int, flags.odd(3)] = 5
    """Where."""
    methods: Annotated[tuple[str, ...], flags.choice(("set", "rigl")), flags.DISTINCT] = ("set",)
    """How."""
    widths: Annotated[tuple[float, ...], flags.within("(0, 100]"), flags.DISTINCT] = (1.0,)
    """How wide."""
    evaluations: Annotated[int, flags.HIDDEN] = 1
    out: Path = Path("runs/x")
    """Where to."""
    overwrite: bool = False
    """Replace it."""
    resume: bool = False
    """Go on."""
    config: Annotated[Path | None, flags.default("none")] = None
    """From where."""

    def conflicts(self):
        if self.resume and self.overwrite:
            yield "--resume and --overwrite exclude each other"


def parse(*argv):
    return cli.parse(Config, argv)


def test_flags():
    assert parse() == Config()
    config = parse("--data-dir", "d", "--steps", "5", "--learning-rate", "1e-2", "--overwrite")
    assert config == Config(data_dir=Path("d"), steps=5, learning_rate=0.01, overwrite=True)


def test_help_shows_every_flag_and_default(capsys):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for text in ("{digits,mnist}", "PATH", "as many as it takes", "How fast. And how", "0.001"):
        assert text in said
    for text in ("--resume", "in (--sparsity, 1]", "odd, at least 3", "{set,rigl} ..."):
        assert text in said
    assert "--evaluations" not in said


def test_a_file_gives_back_the_configuration(tmp_path):
    config = Config(
        dataset="mnist", data_dir=Path("d"), steps=7, learning_rate=3e-5, methods=("rigl", "set")
    )
    file = tmp_path / "config.yaml"
    file.write_text(cli.to_yaml(config))
    assert cli.from_yaml(Config, file) == config
    assert "overwrite" not in file.read_text()
    assert parse("--config", str(file), "--steps", "9") == replace(config, steps=9, config=file)


def test_resume_reads_the_configuration_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 11\n")
    config = parse("--out", str(tmp_path), "--resume")
    assert (config.steps, config.out, config.resume) == (11, tmp_path, True)


def test_numbers_as_people_write_them(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("learning_rate: 1e-3\nsteps: null\n")  # YAML reads 1e-3 as a string
    assert cli.from_yaml(Config, file) == Config()
    file.write_text("learning_rate: 1\n")
    assert type(cli.from_yaml(Config, file).learning_rate) is float


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("step: 5", "unknown key 'step' in --config .*; did you mean 'steps'?"),
        ("zebra: 5", "unknown key 'zebra' in --config .*; known are dataset, data_dir"),
        ("overwrite: true", "unknown key 'overwrite'"),
        ("zebra: 5\nlion: 6", "unknown keys 'zebra', 'lion' in --config .*; is it of another"),
        ("steps: five", "'steps' in --config .* must be int or null, got 'five'"),
        ("steps: 5.5", "must be int or null, got 5.5"),
        ("steps: true", "must be int or null, got True"),
        ("learning_rate: fast", "must be float, got 'fast'"),
        ("methods: rigl", "'methods' in --config .* must be a list, got 'rigl'"),
        ("methods: [1]", "must be str, got 1"),
        ("dataset: null", "must be str, got None"),
        ("- 5", "must hold 'key: value' lines"),
        ("steps: " + "[" * 2000, "must hold 'key: value' lines and lists of values; line 1 nests"),
        ("methods:\n- [set]", "line 2 nests deeper"),
        ("methods: &a [set]\ndataset: *a", "has the alias \\*a: write out what it stands for"),
        ("steps: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("dataset: 2001-99-99", "is not YAML: month must be in"),
        ("steps: " + "x" * 5000, "must be int or null, got '" + "x" * 59 + r" \.\.\.$"),
        ("a: [", "is not YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path, content, message):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=message) as caught:
        cli.from_yaml(Config, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "five"], "--steps"),
        (["--stepz", "5"], "unknown flag '--stepz'; did you mean '--steps'?"),
        (["--data_dri=x"], "unknown flag '--data_dri=x'; did you mean '--data-dir'?"),
        (["-steps", "5"], "unknown flag '-steps'; did you mean '--steps'?"),
        (["--zebra"], "unknown flag '--zebra'; see --help"),
        (["--steps", "99999999999"], "--steps must be at most 2,147,483,647 (int32), got 99,"),
        (["--steps=-99999999999"], "--steps must be at least -2,147,483,647 (int32), got -99,"),
        (["--config", "/nowhere.yaml"], "cannot read --config '/nowhere.yaml': No such file"),
        (["--config"], "--config"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_in_flags_are_one_line_and_exit_code_2(capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(Config, lambda config: None, argv)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def mistakes(*argv):
    """The lines of the error after these flags; none where they make sense."""
    try:
        parse(*argv)
    except RecipeError as error:
        return str(error).splitlines()
    return []


def test_an_interval_holds_as_float32_too():
    for value in ("0", "1e-45", "0.999"):
        assert not mistakes("--sparsity", value)
    fraction = "--sparsity must be in [0, 1), got 90 (a fraction: did you mean 0.9?)"
    assert mistakes("--sparsity", "90", "--end", "100")[0] == fraction
    (said,) = mistakes("--sparsity", "0.99999999999")
    assert said.endswith("got 0.99999999999 (which is 1 in float32)")
    for value in ("1e39", "1e-50"):
        (said,) = mistakes("--widths", value)
        assert "in float32" in said or "must be in (0, 100], got 1e+39" in said
    for value in ("1", "-0.1", "nan"):
        assert f"--sparsity must be in [0, 1), got {value}" in mistakes("--sparsity", value)


def test_a_bound_may_be_another_flag():
    assert not mistakes("--sparsity", "0.5", "--end", "0.6")
    (said,) = mistakes("--sparsity", "0.5", "--end", "0.5")
    assert said == "--end must be in (0.5, 1], got 0.5"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--steps 0", "--steps must be at least 1, got 0"),
        ("--points 1", "--points must be at least 3, got 1"),
        ("--points 4", "--points must be odd, so that the middle is one of them; got 4"),
        ("--methods", "--methods needs at least one value"),
        ("--methods set set", "--methods has set twice"),
        ("--methods set prune", "unknown --methods 'prune'; choose one of set, rigl"),
        ("--methods rigll", "unknown --methods 'rigll'; choose one of set, rigl; did you mean "),
        ("--evaluations 3", "unknown flag '--evaluations'; see --help"),
        ("--resume --overwrite --out {}", "--resume and --overwrite exclude each other"),
    ],
)
def test_a_mistake_in_a_value(tmp_path, argv, message):
    (tmp_path / "config.yaml").write_text("steps: 11\n")
    (said,) = mistakes(*argv.format(tmp_path).split())
    assert said.startswith(message)


def test_several_mistakes_are_told_at_once(capsys):
    argv = ["--steps", "0", "--sparsity", "2", "--dataset", "cats", "--methods", "set", "set"]
    with pytest.raises(SystemExit) as stop:
        cli.main(Config, lambda config: None, argv)
    said = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert [line.split()[1:3] for line in said] == [
        ["unknown", "--dataset"],
        ["--steps", "must"],
        ["--sparsity", "must"],
        ["--end", "must"],
        ["--methods", "has"],
    ]
    assert len(mistakes("--stepz", "1", "--sparsty", "0.5")) == 2


def test_exit_codes_of_signals(capsys):
    def stopped(config):
        raise Stopped(signal.SIGTERM, "stopped at step 3")

    def interrupted(config):
        raise KeyboardInterrupt

    def terminated(config):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    for run, code in ((stopped, 143), (interrupted, 130), (terminated, 143)):
        with pytest.raises(SystemExit) as stop:
            cli.main(Config, run, [])
        assert stop.value.code == code
    assert capsys.readouterr().err.startswith("stopped at step 3\n")


def test_a_disk_that_takes_no_more_is_told_in_a_line(capsys):
    def full(config):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/x/plots")

    with pytest.raises(SystemExit) as stop:
        cli.main(Config, full, [])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: 'runs/x/plots': Read-only file system\n"


def test_the_first_signal_waits_and_the_second_does_not():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_signals() as signalled:
        assert signalled() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert signalled() == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
