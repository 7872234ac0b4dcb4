"""The command line of a recipe: a documented dataclass, read from flags and from a YAML file."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import tyro
import yaml

from recipes.common.folder import RecipeError, reason
from recipes.common.terminal import NOTHING_MORE, Stopped, signals_stop

C = TypeVar("C")

# What concerns one invocation, and not the run that it makes: never in a file.
DEEPEST = 2  # a list, in the mapping that a file is
MOST = 2**31 - 1  # of int32, in which steps and seeds are counted
NOT_SAVED = ("config", "overwrite", "resume", "allow_changes")


def words(help: str) -> Any:
    """What --help says of a flag, where a docstring of one line is too short.

    tyro breaks a docstring of several lines where they end.
    """
    return tyro.conf.arg(help=help)


def choice(names: Sequence[str], default: str | None = None, help: str | None = None) -> Any:
    """How --help shows a flag that takes one of `names`; `default` in words, where it is None."""
    hint = None if default is None else f"(default: {default})"
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}", help_behavior_hint=hint, help=help)


def several(names: Sequence[str]) -> Any:
    """How --help shows a flag that takes one or several of `names`."""
    return listed("{" + ",".join(names) + "}")


def listed(metavar: str, help: str | None = None) -> Any:
    """How --help shows a flag that takes one or several values."""
    return tyro.conf.arg(metavar=f"{metavar} ...", help=help)


def default_is(metavar: str, default: str, help: str | None = None) -> Any:
    """How --help shows a flag that is None unless given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})", help=help)


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
    _check_names(cls, sys.argv[1:] if argv is None else argv)
    config = _flags(cls, cls(), program, argv)
    file = getattr(config, "config", None)
    if file is None and getattr(config, "resume", False):
        file = getattr(config, "out") / "config.yaml"  # noqa: B009 (a type checker can't know it)
        if not file.is_file():
            raise RecipeError(f"--resume finds no run: there is no '{file}'")
    if file is not None:
        config = _flags(cls, from_yaml(cls, file), program, argv)
    _check_sizes(config)
    return config


def from_yaml(cls: type[C], file: Path) -> C:
    """The configuration in a YAML file; raises `RecipeError` for what `cls` has no place for."""
    read = read_yaml(file)
    hints = get_type_hints(cls)
    known = [field.name for field in fields(cls) if field.name not in NOT_SAVED]  # type: ignore[arg-type]
    values = {}
    unknown = [f"'{key}'" for key in read if key not in known]
    if len(unknown) > 1:
        raise RecipeError(
            f"unknown keys {', '.join(unknown)} in --config '{file}'; is it of another recipe?"
        )
    for key, value in read.items():
        if key not in known:
            hint = close(str(key), known) or f"known are {', '.join(known)}"
            raise RecipeError(f"unknown key '{key}' in --config '{file}'; {hint}")
        values[key] = _typed(file, key, value, hints[key])
    return replace(cls(), **values)  # type: ignore[type-var]


def read_yaml(file: Path) -> dict[str, Any]:
    """What a file of 'key: value' lines holds; a value is a number, a text, or a list of these.

    Raises `RecipeError` for anything else: nothing that nests, and no aliases, which can stand for
    more than any memory holds.
    """
    try:
        text = file.read_text()
        found = _not_flat(text)
        read = {} if found else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read --config '{file}': {reason(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that is none, a number too long to read
        raise RecipeError(f"--config '{file}' is not YAML: {reason(error)}") from error
    if found:
        raise RecipeError(f"--config '{file}' {found}")
    if not isinstance(read, dict):
        raise RecipeError(f"--config '{file}' must hold 'key: value' lines")
    return read


def _not_flat(text: str) -> str:
    """What makes YAML more than 'key: value' lines with lists as values; "" if nothing does."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # this builds nothing
        if isinstance(event, yaml.AliasEvent):
            return f"has the alias *{event.anchor}: write out what it stands for"
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            line = event.start_mark.line + 1
            return f"must hold 'key: value' lines and lists of values; line {line} nests deeper"
    return ""


def to_yaml(config: Any) -> str:
    """The configuration as YAML: `from_yaml` reads it back, equal."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def plain(config: Any) -> dict[str, Any]:
    """The configuration as YAML and JSON know it: text, numbers and lists by name."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_SAVED}
    as_text = {key: str(v) if isinstance(v, Path) else v for key, v in values.items()}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in as_text.items()}


def in_range(flag: str, value: float, low: float, high: float, brackets: str = "[]") -> None:
    """Raises `RecipeError` unless `value` lies between; "[)" leaves the upper end out.

    It must lie there as a float32 too, since that is what it is trained with.
    """

    def within(x: float) -> bool:
        above = x >= low if brackets[0] == "[" else x > low
        return above and (x <= high if brackets[1] == "]" else x < high)  # nan is in no range

    with np.errstate(over="ignore"):
        rounded = float(np.float32(value))
    if not (within(value) and within(rounded)):
        bounds = f"{brackets[0]}{low:g}, {high:g}{brackets[1]}"
        hint = ""
        if high == 1 and 1 < value <= 100:
            hint = f" (a fraction: did you mean {value / 100:g}?)"
        elif within(value):
            hint = f" (which is {rounded:g} in float32)"
        raise RecipeError(f"{flag} must be in {bounds}, got {value:.12g}{hint}")


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
        hint = close(value, choices)
        known = ", ".join(choices) + (f"; {hint}" if hint else "")
        raise RecipeError(f"unknown {flag} '{value}'; choose one of {known}")


def close(name: str, names: Iterable[str]) -> str:
    """A question that asks whether another of `names` was meant; "" where none is like `name`."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean '{found[0]}'?" if found else ""


def some_of(flag: str, values: Sequence[Any], choices: Sequence[Any] | None = None) -> None:
    """Raises `RecipeError` unless there are `values`, no two alike, and all of `choices`."""
    if not values:
        raise RecipeError(f"{flag} needs at least one value")
    for value in values:
        if choices is not None:
            one_of(flag, value, choices)
        if list(values).count(value) > 1:
            raise RecipeError(f"{flag} has {value} twice")


def _check_names(cls: type[Any], argv: Sequence[str]) -> None:
    """Raises `RecipeError` for a word that looks like a flag and is none; says what is like it."""
    known = {f"--{field.name.replace('_', '-')}" for field in fields(cls)} | {"--help"}
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if not name.startswith("-") or name in known or name == "-h" or name.startswith("--tyro"):
            continue
        try:
            float(word)
        except ValueError:
            hint = close(name, sorted(known)) or "see --help"
            raise RecipeError(f"unknown flag '{word}'; {hint}") from None


def _check_sizes(config: Any) -> None:
    """Raises `RecipeError` for an integer that int32 can't hold."""
    for field in fields(config):
        value = getattr(config, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            flag = f"--{field.name.replace('_', '-')}"
            if isinstance(one, int) and abs(one) > MOST:
                bound = f"at most {MOST:,}" if one > 0 else f"at least {-MOST:,}"
                raise RecipeError(f"{flag} must be {bound} (int32), got {one:,}")


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
            raise RecipeError(f"'{key}' in --config '{file}' must be a list, got {_short(value)}")
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
        raise RecipeError(f"'{key}' in --config '{file}' must be {wanted}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    """A value as Python writes it, on a line that is not too long."""
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]} ..."
