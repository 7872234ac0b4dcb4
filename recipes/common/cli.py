"""The command line of a recipe: a documented dataclass, read from flags and from a YAML file."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from recipes.common.errors import RecipeError, reason
from recipes.common.interrupt import NOTHING_MORE, Stopped, signals_stop

C = TypeVar("C")

# What concerns one invocation, and not the run that it makes: never in a file.
NOT_SAVED = ("config", "overwrite", "resume", "allow_changes")


def choice(names: Sequence[str], default: str | None = None) -> Any:
    """How --help shows a flag that takes one of `names`; `default` in words, where it is None."""
    hint = None if default is None else f"(default: {default})"
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}", help_behavior_hint=hint)


def several(names: Sequence[str]) -> Any:
    """How --help shows a flag that takes one or several of `names`."""
    return listed("{" + ",".join(names) + "}")


def listed(metavar: str) -> Any:
    """How --help shows a flag that takes one or several values."""
    return tyro.conf.arg(metavar=f"{metavar} ...")


def default_is(metavar: str, default: str) -> Any:
    """How --help shows a flag that is None unless given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def main(
    cls: type[C], run: Callable[[C], Any], program: str, argv: Sequence[str] | None = None
) -> None:
    """`run(config)`, with what the user can put right as one line on stderr, no traceback.

    Exits with 2 after such an error, and with 130 (143) if Ctrl-C (SIGTERM) ended the run.
    """
    try:
        with signals_stop():
            run(parse(cls, program, argv))
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = f"'{error.filename}': " if error.filename else ""
        print(f"error: {where}{reason(error)}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.signum)
    except KeyboardInterrupt:
        print(NOTHING_MORE, file=sys.stderr)
        sys.exit(130)


def parse(cls: type[C], program: str, argv: Sequence[str] | None = None) -> C:
    """The configuration: the defaults of `cls`, then the file of --config, then the flags.

    With --resume the file is the one in the folder --out. Raises `RecipeError`.
    """
    config = _flags(cls, cls(), program, argv)
    file = getattr(config, "config", None)
    if file is None and getattr(config, "resume", False):
        file = getattr(config, "out") / "config.yaml"  # noqa: B009 (a type checker can't know it)
        if not file.is_file():
            raise RecipeError(f"--resume finds no run: there is no '{file}'")
    if file is None:
        return config
    return _flags(cls, from_yaml(cls, file), program, argv)


def from_yaml(cls: type[C], file: Path) -> C:
    """The configuration in a YAML file; raises `RecipeError` for what `cls` has no place for."""
    try:
        read = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read --config '{file}': {reason(error)}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"--config '{file}' is not YAML: {reason(error)}") from error
    if not isinstance(read, dict):
        raise RecipeError(f"--config '{file}' must hold 'key: value' lines")
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.name not in NOT_SAVED]  # type: ignore[arg-type]
    values = {}
    for key, value in read.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
            raise RecipeError(f"unknown key '{key}' in --config '{file}'; {hint}")
        values[key] = _typed(file, key, value, hints[key])
    return replace(cls(), **values)  # type: ignore[type-var]


def to_yaml(config: Any) -> str:
    """The configuration as YAML: `from_yaml` reads it back, equal."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(config: Any) -> dict[str, Any]:
    """The configuration as YAML and JSON know it: text, numbers and lists by name."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_SAVED}
    as_text = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in as_text.items()}


def in_range(flag: str, value: float, low: float, high: float, brackets: str = "[]") -> None:
    """Raises `RecipeError` unless `value` lies between; "[)" leaves the upper end out."""
    above = value >= low if brackets[0] == "[" else value > low
    below = value <= high if brackets[1] == "]" else value < high
    if not (above and below):  # nan is in no range
        bounds = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"
        percent = high == 1 and 1 < value <= 100
        hint = f" (a fraction: did you mean {value / 100:g}?)" if percent else ""
        raise RecipeError(f"{flag} must be in {bounds}, got {value:g}{hint}")


def at_least(flag: str, value: int, low: int) -> None:
    """Raises `RecipeError` if `value` is less than `low`."""
    if value < low:
        raise RecipeError(f"{flag} must be at least {low}, got {value}")


def odd(flag: str, value: int, low: int) -> None:
    """Raises `RecipeError` if `value` is less than `low`, or even."""
    at_least(flag, value, low)
    if value % 2 == 0:
        raise RecipeError(f"{flag} must be odd, so that the middle is one of them; got {value}")


def one_of(flag: str, value: str, choices: Sequence[str]) -> None:
    """Raises `RecipeError` unless `value` is one of `choices`."""
    if value not in choices:
        raise RecipeError(f"unknown {flag} '{value}'; choose one of {', '.join(choices)}")


def some_of(flag: str, values: Sequence[Any], choices: Sequence[Any] | None = None) -> None:
    """Raises `RecipeError` unless there are `values`, no two alike, and all of `choices`."""
    if not values:
        raise RecipeError(f"{flag} needs at least one value")
    for value in values:
        if choices is not None:
            one_of(flag, value, choices)
        if list(values).count(value) > 1:
            raise RecipeError(f"{flag} has {value} twice")


def _flags(cls: type[C], default: C, program: str, argv: Sequence[str] | None) -> C:
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                cls,
                prog=program,
                default=default,
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise RecipeError(_first_paragraph(said.getvalue())) from None


def _first_paragraph(box: str) -> str:
    """The message that tyro frames (or, without Unicode, rules off), on one line."""
    words: list[str] = []
    for line in box.splitlines()[1:]:  # the first line is a title
        text = line.strip("│|╭╮╰╯─+- ")
        if text:
            words.append(text)
        elif words:
            break
    return " ".join(words) or "these flags make no sense; see --help"


def _typed(file: Path, key: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"'{key}' in --config '{file}' must be a list, got {value!r}")
        return tuple(_typed(file, key, entry, get_args(hint)[0]) for entry in value)
    allowed = get_args(hint) or (hint,)
    if Path in allowed and isinstance(value, str):
        return Path(value)
    if float in allowed and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:  # YAML reads 1e-3 as a string, and 1 as an integer
            return float(value)
        except ValueError:
            pass
    if not any(type(value) is kind for kind in allowed):
        wanted = " or ".join("null" if a is type(None) else a.__name__ for a in allowed)
        raise RecipeError(f"'{key}' in --config '{file}' must be {wanted}, got {value!r}")
    return value
