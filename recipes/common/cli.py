"""The command line of a recipe: a documented dataclass, read from flags and from a YAML file."""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import field, fields, make_dataclass, replace
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from recipes.common.flags import Rule, check, close, flag_of, flags_of
from recipes.common.folder import CONFIG, RecipeError, reason
from recipes.common.terminal import NOTHING_MORE, Stopped, signals_stop

C = TypeVar("C")

DEEPEST = 2  # a list, in the mapping that a file is
# Fields of one invocation and not of the run that it makes: never in a file.
NOT_SAVED = ("config", "overwrite", "resume", "allow_changes", "tensorboard")


def command(cls: type[C], run: Callable[[C], Any]) -> Callable[..., None]:
    """`main(argv=None)` of a recipe; `argv` defaults to the command line of the process."""
    return partial(main, cls, run)


def main(cls: type[C], run: Callable[[C], Any], argv: Sequence[str] | None = None) -> None:
    """`run(config)`, with what the user can put right as lines on stderr, no traceback.

    Exits with 2 after such an error, and with 130 (143) if Ctrl-C (SIGTERM) ended the run.
    """
    try:
        with signals_stop():
            run(parse(cls, argv))
    except RecipeError as error:
        print(*(f"error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
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


def program(cls: type[Any]) -> str:
    """The command that runs the recipe of this configuration: "python -m recipes.gmp"."""
    spec = sys.modules[cls.__module__].__spec__
    return f"python -m {spec.name if spec else cls.__module__}"


def again(config: Any) -> str:
    """The command that repeats the run of this configuration."""
    return f"{program(type(config))} --config {config.out / CONFIG} --out NEW_FOLDER"


def parse(cls: type[C], argv: Sequence[str] | None = None) -> C:
    """The configuration: the defaults of `cls`, then the file of --config, then the flags.

    With --resume the file is the one in the folder --out. Raises `RecipeError`.
    """
    _check_names(cls, sys.argv[1:] if argv is None else argv)
    config = _parsed(cls, cls(), argv)
    file = getattr(config, "config", None)
    if file is None and getattr(config, "resume", False):
        file = getattr(config, "out") / CONFIG  # noqa: B009 (a type checker can't know it)
        if not file.is_file():
            raise RecipeError(f"--resume finds no run: there is no '{file}'")
    if file is not None:
        config = _parsed(cls, from_yaml(cls, file), argv)
    check(config)
    return config


def _check_names(cls: type[Any], argv: Sequence[str]) -> None:
    """Raises `RecipeError` for words that look like flags and are none; says what is like them."""
    known = {flag_of(flag.name) for flag in flags_of(cls) if not flag.hidden} | {"--help"}
    unknown = []
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("-") and name not in (*known, "-h") and not _is_number(word):
            unknown.append(f"unknown flag '{word}'; {close(name, sorted(known)) or 'see --help'}")
    if unknown:
        raise RecipeError("\n".join(unknown))


def _is_number(word: str) -> bool:
    try:
        return float(word) is not None
    except ValueError:
        return False


def _parsed(cls: type[C], default: C, argv: Sequence[str] | None) -> C:
    """`default` with the flags of `argv`."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            shown = tyro.cli(
                _shown(cls, default),
                prog=program(cls),
                args=argv,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise RecipeError(_first_paragraph(said.getvalue())) from None
    return cls(**vars(shown))


def _shown(cls: type[C], defaults: C) -> type[C]:
    """`cls` as tyro reads it: each flag with its docstring, its rules and its default in words."""
    docstrings, shown = _docstrings(cls), []
    for name, hint, rules, hidden in flags_of(cls):
        value = getattr(defaults, name)
        words = [rule.words for rule in rules if rule.words]
        usual = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        if value is None or value == ():
            usual = next((rule.default for rule in rules if rule.default), "none")
        words += [f"default: {usual}"] if value is not False else []
        look = tyro.conf.arg(
            metavar=_metavar(hint, rules),
            help=docstrings.get(name, ""),
            help_behavior_hint=f"({'; '.join(words)})" if words else "",
        )
        marks = (look, tyro.conf.Suppress) if hidden else (look,)
        shown.append((name, Annotated[(hint, *marks)], field(default=value)))
    return make_dataclass(cls.__name__, shown, namespace={"__doc__": cls.__doc__}, frozen=True)


def _metavar(hint: Any, rules: Sequence[Rule]) -> str | None:
    """A value in words: "INT", or for several "{a,b} ..."; None for a flag without a value."""
    if isinstance(hint, UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    if hint is bool:
        return None
    several = get_args(hint) if get_origin(hint) is tuple else ()
    one = several[0] if several else hint
    name = next((rule.metavar for rule in rules if rule.metavar), one.__name__.upper())
    return f"{name} ..." if several[1:] == (...,) else " ".join([name] * max(len(several), 1))


def _docstrings(cls: type[Any]) -> dict[str, str]:
    """Field -> its docstring on one line: tyro would break it where its lines end."""
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for one, said in zip(node.body, node.body[1:], strict=False):  # type: ignore[attr-defined]
            if isinstance(one, ast.AnnAssign) and isinstance(said, ast.Expr):
                found[ast.unparse(one.target)] = " ".join(ast.literal_eval(said.value).split())
    return found


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


# --- files ----------------------------------------------------------------------------------------


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
    as_text = lambda value: str(value) if isinstance(value, Path) else value
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in NOT_SAVED}
    return {
        key: [as_text(each) for each in v] if isinstance(v, tuple) else as_text(v)
        for key, v in values.items()
    }


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
