"""What a flag may be, declared with it: `Annotated[float, flags.within("[0, 1)")]`.

What a configuration's method `conflicts` yields are mistakes of several flags together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import tyro

from recipes.common.folder import RecipeError

MOST = 2**31 - 1  # of int32, in which steps and seeds are counted
HIDDEN = tyro.conf.Suppress  # no flag: the study has decided


class Rule(NamedTuple):
    """What a flag may be, and how --help shows it; of a flag with several values, each of them."""

    # (flag, value, configuration) -> the mistake in words, "" for none
    mistake: Callable[[str, Any, Any], str] = lambda flag, value, config: ""
    words: str = ""  # beside the default, such as "in [0, 1)"
    metavar: str = ""
    default: str = ""  # in words, where the default is None or ()
    of_all: bool = False  # `mistake` is asked once, about all values


def within(interval: str) -> Rule:
    """A number in an interval such as "(0, 100]"; a bound may be "inf", or another flag's field.

    The number must lie there as a float32 too, since that is what the recipe computes with.
    """
    low, high = interval[1:-1].split(", ")

    def mistake(flag: str, value: float, config: Any) -> str:
        bottom, top = (float(getattr(config, bound, bound)) for bound in (low, high))

        def inside(x: float) -> bool:
            above = x >= bottom if interval[0] == "[" else x > bottom
            return above and (x <= top if interval[-1] == "]" else x < top)  # nan never is

        with np.errstate(over="ignore"):
            rounded = float(np.float32(value))
        if inside(value) and inside(rounded):
            return ""
        hint = ""
        if top == 1 and 1 < value <= 100:
            hint = f" (a fraction: did you mean {value / 100:g}?)"
        elif inside(value):
            hint = f" (which is {rounded:g} in float32)"
        bounds = f"{interval[0]}{bottom:g}, {top:g}{interval[-1]}"
        return f"{flag} must be in {bounds}, got {value:.12g}{hint}"

    return Rule(
        mistake, f"in {re.sub('(?!inf)[a-z_]{3,}', lambda name: flag_of(name[0]), interval)}"
    )


def at_least(low: int | str, most: int = MOST) -> Rule:
    """A count that is neither below `low` (which may be another flag's field) nor above `most`."""

    def mistake(flag: str, value: int, config: Any) -> str:
        bottom = getattr(config, low) if isinstance(low, str) else low
        if value < bottom:
            return f"{flag} must be at least {bottom}, got {value}"
        return f"{flag} must be at most {most:,}, got {value:,}" if value > most else ""

    return Rule(mistake, f"at least {flag_of(low) if isinstance(low, str) else low}")


def odd(low: int) -> Rule:
    """An odd count that is at least `low`."""

    def mistake(flag: str, value: int, config: Any) -> str:
        if value % 2 == 0 and value >= low:
            return f"{flag} must be odd, so that the middle is one of them; got {value}"
        return at_least(low).mistake(flag, value, config)

    return Rule(mistake, f"odd, at least {low}")


def choice(names: Iterable[str], folder: str = "") -> Rule:
    """One of `names`; or a folder, where `folder` says of what."""
    names = tuple(names)
    shown = (*names, *(["DIR"] if folder else []))
    others = f", or {folder}, which is no folder here" if folder else ""

    def mistake(flag: str, value: str, config: Any) -> str:
        hint = f"; {close(value, names)}" if close(value, names) else ""
        known = f"unknown {flag} '{value}'; choose one of {', '.join(names)}{others}{hint}"
        return "" if value in names or (folder and Path(value).is_dir()) else known

    return Rule(mistake, metavar="{" + ",".join(shown) + "}")


def _not_distinct(flag: str, values: Sequence[Any], config: Any) -> str:
    twice = [value for value in dict.fromkeys(values) if list(values).count(value) > 1]
    return (
        ""
        if values and not twice
        else f"{flag} has {twice[0]} twice"
        if twice
        else f"{flag} needs at least one value"
    )


DISTINCT = Rule(_not_distinct, of_all=True)  # one value or several, no two alike


Count = Annotated[int, at_least(1)]
Fraction = Annotated[float, within("[0, 1)")]
Positive = Annotated[float, within("(0, inf)")]
NotNegative = Annotated[float, within("[0, inf)")]


def default(words: str) -> Rule:
    """What --help says is the default, where it is None or ()."""
    return Rule(default=words)


def metavar(word: str) -> Rule:
    """What --help shows for a value."""
    return Rule(metavar=word)


def flag_of(name: str) -> str:
    """The flag of a field."""
    return f"--{name.replace('_', '-')}"


def close(name: str, names: Iterable[str]) -> str:
    """A question that asks whether another of `names` was meant; "" where none is like `name`."""
    found = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean '{found[0]}'?" if found else ""


class Flag(NamedTuple):
    """A field of a configuration, as its class declares it."""

    name: str
    hint: Any  # without what `Annotated` adds
    rules: list[Rule]
    hidden: bool  # no flag: the study has decided


def flags_of(cls: Any) -> Iterator[Flag]:
    hints = get_type_hints(cls, include_extras=True)
    for name in (one.name for one in fields(cls)):
        hint, *marks = (
            get_args(hints[name]) if get_origin(hints[name]) is Annotated else (hints[name],)
        )
        rules = [mark for mark in marks if isinstance(mark, Rule)]
        yield Flag(name, hint, rules, tyro.conf.Suppress in marks)


def check(config: Any) -> None:
    """Raises `RecipeError` with a line for each mistake in the values of a configuration."""
    found = [said for flag in flags_of(type(config)) for said in _mistakes(flag, config)]
    if not found and hasattr(config, "conflicts"):
        found = list(config.conflicts())
    if found:
        raise RecipeError("\n".join(found))


def _mistakes(flag: Flag, config: Any) -> Iterator[str]:
    value, name = getattr(config, flag.name), flag_of(flag.name)
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    for one in values:
        if isinstance(one, int) and abs(one) > MOST:
            bound = f"at most {MOST:,}" if one > 0 else f"at least {-MOST:,}"
            yield f"{name} must be {bound} (int32), got {one:,}"
            return
    for rule in flag.rules:
        asked = [values] if rule.of_all else values
        yield from filter(None, (rule.mistake(name, one, config) for one in asked))
