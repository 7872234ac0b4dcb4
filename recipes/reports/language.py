"""What `recipes.language` tells: its numbers, its report, its picture, and samples of text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from recipes.common import folder, lanes, report
from recipes.common.figures import text as pictures
from recipes.common.figures.style import Curve
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.language import Config, Study

LEARNING, SAMPLES = "plots/learning.png", "samples.txt"
SHOWN = 4  # samples along the way


def write(
    config: Config,
    s: Study,
    params: Any,
    records: list[dict[str, Any]],
    ends: dict[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    tested = [record for record in records if "validation_bits" in record]
    numbers = {part: report.over_seeds(ends[f"{part}_bits"]) for part in ("validation", "test")}
    summary = report.summary(
        config,
        "bits a character of a decoder",
        weights=sum(x[0].size for x in jax.tree.leaves(params)),
        vocabulary=len(s.text.words),
        characters={part: s.text.size(getattr(s.text, part)) for part in ("train", *numbers)},
        text_sha256=checksum(s),
        context=config.context,
        steps=config.steps,
        train_bits=report.over_seeds(records[-1]["train_bits"]),
        validation_bits=numbers["validation"],
        test_bits=numbers["test"],
        test_perplexity=report.over_seeds(2 ** np.array(ends["test_bits"])),
        samples=ends["samples"],
        seconds=seconds,
    )
    along = [tested[round(i)] for i in np.linspace(0, len(tested) - 1, min(SHOWN, len(tested)))]
    told = {f"after {r['step']:,} steps": r["sample"] for r in along[:-1]}
    told |= {f"sample {i + 1}": sample for i, sample in enumerate(ends["samples"])}
    content = "\n\n".join(f"--- {name}\n{sample}" for name, sample in told.items())
    folder.write(config.out / SAMPLES, f"{content}\n")
    return report.finish(config, write_up(config, s, params, records, summary, told), summary)


def checksum(s: Study) -> str:
    """The SHA-256 of the three parts of the text in order, in UTF-8."""
    parts = s.text.train, s.text.validation, s.text.test
    return hashlib.sha256("".join(map(s.text.decode, parts)).encode()).hexdigest()


def write_up(
    config: Config,
    s: Study,
    params: Any,
    records: list[dict[str, Any]],
    summary: dict[str, Any],
    told: dict[str, str],
) -> Writeup:
    """The result, for people: a row for each part of the text."""
    source = config.text or config.dataset
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    weights, first = summary["weights"], lanes.lane_of(params, 0)
    forward = lambda params, tokens: s.apply({"params": params}, tokens)
    tokens = jax.ShapeDtypeStruct((1, config.context), jnp.int32)
    layers = report.layers(first, lanes.keep_all(first), forward, tokens)
    return Writeup(
        title="A decoder trained on text",
        headline=(
            f"{config.model} decoder ({weights:,} weights) on {source}, {seeds}, "
            f"{config.steps:,} steps of {config.batch_size} windows of {config.context} "
            f"{config.tokens}"
        ),
        columns=("characters", "bits a character", "perplexity"),
        rows=[row(part, summary) for part in ("train", "validation", "test")],
        pictures={
            LEARNING: Picture(
                pictures.learning(curves(records)),
                "Bits a character over the steps: means over seeds, and the range. On training "
                "data means over the steps of a call of the device.",
            )
        },
        layers={**told, "layers": layers},
        models=[folder.MODEL],
        notes="Perplexity is of one character",
        saved=(
            "The samples are in `" + SAMPLES + "`, and the weights of all seeds in {models}: "
            "`python -m recipes.one_shot --trained " + str(config.out) + "` prunes them."
        ),
        of_layers="Samples of the first seed, and its layers",
    )


def row(part: str, summary: dict[str, Any]) -> tuple[str, ...]:
    """A part of the text, its characters, bits and perplexity."""
    bits = summary[f"{part}_bits"]
    perplexity = report.over_seeds(2 ** np.array(bits["per_seed"]))
    return part, f"{summary['characters'][part]:,}", number(bits), number(perplexity)


def number(numbers: dict[str, Any]) -> str:
    """`over_seeds` as "1.234 ± 0.005"; one seed has no deviation."""
    deviation = f" ± {numbers['std']:.3f}" if len(numbers["per_seed"]) > 1 else ""
    return f"{numbers['mean']:.3f}{deviation}"


def curves(records: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The bits on both parts over the steps, where they were measured."""
    found: dict[str, Curve] = {}
    for part in ("train", "validation"):
        points = [(r["step"], r[f"{part}_bits"]) for r in records if f"{part}_bits" in r]
        steps, values = zip(*points, strict=True)
        found[part] = (steps, np.asarray(values))
    return found
