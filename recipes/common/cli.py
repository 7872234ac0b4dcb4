"""The command line of a recipe: a documented dataclass, read from flags and from a YAML file."""

from __future__ import annotations

import ast
import inspect
import io
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import field, make_dataclass
from functools import partial
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import tyro

from recipes.common.config_files import close, from_yaml
from recipes.common.flags import Rule, check, flag_of, flags_of
from recipes.common.folder import CONFIG, RecipeError, reason
from recipes.common.terminal import NOTHING_MORE, Stopped, signals_stop

C = TypeVar("C")


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
