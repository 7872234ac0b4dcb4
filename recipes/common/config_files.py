"""Configurations as YAML files: 'key: value' lines, checked as they are read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from recipes.common.folder import RecipeError, reason

C = TypeVar("C")

DEEPEST = 2  # a list, in the mapping that a file is
# Fields of one invocation and not of the run that it makes: never in a file.
NOT_SAVED = ("config", "overwrite", "resume", "allow_changes", "tensorboard")


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


def close(name: str, names: Iterable[str]) -> str:
    """A question that asks whether another of `names` was meant; "" where none is like `name`."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean '{found[0]}'?" if found else ""
