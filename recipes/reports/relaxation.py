"""What `recipes.relaxation` tells: its numbers, its report and its figures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import accumulate, cycle
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import jaxprune as jp
from jaxprune.structured import Compact, Removal
from recipes.common import dead, folder, lanes, report, small, timing
from recipes.common.data import Dataset
from recipes.common.figures import gates, layers, style
from recipes.common.figures.left import flops_left
from recipes.common.journal import Journal
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.relaxation import Config, Study

STAGES, GATES, WIDTHS, FLOPS = (
    f"plots/{name}.png" for name in ("stages", "gates", "widths", "flops")
)
DENSE = "dense"

Records = list[dict[str, Any]]  # the lines of metrics.jsonl


class Stage(NamedTuple):
    """A stage: what is under the threshold is cut, then what is left is trained.

    `threshold` is None where nothing is cut; `gating` says whether gates multiply and learn, else
    they have been folded into the weights.
    """

    name: str
    steps: int
    threshold: float | None
    pull: float  # what the relative cost is multiplied by
    ejection: float  # and the ejector, once it is on
    gating: bool = True


def arm_name(share: float) -> str:
    """That of the networks that come to a share of the FLOPs."""
    return f"relaxed {100 * share:g} %" if share else "relaxed"


class Watch:
    """What there is to say of a stage, chunk by chunk."""

    def __init__(self, s: Study, journal: Journal, evaluations: int):
        self.s, self.journal, self.evaluations = s, journal, evaluations

    def begin(
        self, stage: Stage, before: int, lane: Any, left: Sequence[Removal], state: lanes.State
    ) -> None:
        """Training goes on with this stage, after so many steps, from this state."""
        self.stage, self.before, self.lane, self.last = stage, before, lane, 0
        self.at_once = self.tested(state)
        structure, dense, _ = self.s.neurons
        self.flops = [jp.structured.cost(structure, kept).flops / dense for kept in left]

    def look(self, point: lanes.Progress) -> None:
        """Adds a line to metrics.jsonl; lists are over seeds."""
        step, state = point.step, point.state
        numbers: dict[str, Any] = {**point.metrics, **self.s.measure(state.params, self.lane)}
        numbers["flops"] = np.asarray(self.flops)
        if step <= self.s.program.chunk_steps:  # the first line of a stage
            numbers["cut_accuracy"] = self.at_once
        if step == self.stage.steps or self._due(step):
            numbers["test_accuracy"] = self.tested(state)
        self.last, n = step, len(self.s.keys)
        arms = {
            arm: {
                key: np.asarray(values)[i * n : (i + 1) * n].tolist()
                for key, values in numbers.items()
            }
            for i, arm in enumerate(self.s.arms)
        }
        said = {"stage": self.stage.name, "seconds": self.journal.seconds()}
        self.journal.log({"step": self.before + step, **said, **arms})

    def tested(self, state: lanes.State) -> np.ndarray:
        """Test accuracy under gates (lanes,)."""
        return self.s.test(self.s.variables(state.params, state.batch_stats, self.lane))

    def _due(self, step: int) -> bool:
        total = sum(stage.steps for stage in self.s.stages)
        before, now = ((self.before + n) * self.evaluations // total for n in (self.last, step))
        return before < now


class Outcome(NamedTuple):
    """What the run came to."""

    config: Config
    study: Study
    variables: Any  # of all lanes, zero where neurons were cut
    left: Sequence[Removal]  # of each lane
    records: Records
    dataset: Dataset


def write(outcome: Outcome) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    summary = summarize(outcome)
    return report.finish(outcome.config, write_up(outcome, summary), summary)


def summarize(outcome: Outcome) -> dict[str, Any]:
    """The content of summary.json; compacts and saves the networks, measures latencies."""
    config, s, variables, left, records, dataset = outcome
    began, n = time.perf_counter(), len(s.keys)
    image = dataset.train.images.shape[1:]
    sizes, accuracy, removed, fast = {}, {}, {}, {}
    for i, arm in enumerate(s.arms):
        removals = left[i * n : (i + 1) * n]
        sizes[arm] = [small.size_of(s.neurons.structure, kept) for kept in removals]
        accuracy[arm] = np.asarray(records[-1][arm]["test_accuracy"])
        if arm == DENSE:
            dense = lanes.lane_of(variables, 0)
            fast[arm] = Compact(dense, s.program.module.apply)
            continue
        masked = [lanes.lane_of(variables, i * n + k) for k in range(n)]
        compact = [
            jp.compact(s.neurons.structure, *pair) for pair in zip(masked, removals, strict=True)
        ]
        seeds = [(gone, one.params) for gone, one in zip(removals, compact, strict=True)]
        small.save(config.out / model_path(arm), s.model, image, seeds)
        fast[arm] = compact[0]
        first = Compact(masked[0], s.program.module.apply)
        removed[arm] = small.compare(first, compact[0], dataset.test)
        removed[arm]["leaves"] = [list(gone.removed) for gone in removals]
    times = (
        timing.latencies(fast, image, rounds=config.timings, seed=config.seed)
        if config.timings
        else {}
    )
    return report.summary(
        config,
        "test accuracy and speed after continuous relaxation, beside dense training",
        steps=records[-1]["step"],
        stages=[stage._asdict() for stage in s.stages],
        flops=list(config.flops),
        **small.numbers(sizes, accuracy, removed, times, dead.chance(dataset.test.labels)),
        seconds=round(records[-1]["seconds"] + time.perf_counter() - began, 2),
    )


def model_path(arm: str) -> str:
    """Where the compacted networks of an arm are, below the folder of the run."""
    return f"{folder.MODEL}/{arm.replace(' %', '').replace(' ', '-')}"


def pictures(outcome: Outcome, summary: dict[str, Any]) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    config, s, records = outcome.config, outcome.study, outcome.records
    relaxed = [arm for arm in s.arms if arm != DENSE]
    ends = list(accumulate(stage.steps for stage in s.stages))
    cutting_stages = {stage.name for stage in s.stages if stage.threshold is not None}
    cut = [record for record in records if record["stage"] in cutting_stages]
    at_ends = [record for record in cut if record["step"] in ends]
    dense = np.asarray(records[-1][DENSE]["test_accuracy"])
    before = small.size_of(s.neurons.structure, {})
    widths = {arm: small.widths(summary["networks"][arm]) for arm in relaxed}
    gated = [record for record in records if record["stage"] != "final"]
    looks = zip(s.arms, cycle(style.COLORS), cycle("os^D"), strict=False)
    drawn = {arm: style.Look(color, "-", marker) for arm, color, marker in looks}
    return {
        STAGES: Picture(
            gates.stages(records, drawn, ends),
            "Left: test accuracy under the gates. Right: the relaxed FLOPs (lines) and those of "
            "the neurons that are not cut yet (dotted). Grey: where a stage ends, and neurons are "
            "cut. Means over seeds; bands from the lowest seed to the highest.",
        ),
        GATES: Picture(
            gates.stage_histograms(gated, relaxed, ends[:-1]),
            "The fraction of the gates that are left with each value, over the steps; all seeds.",
        ),
        WIDTHS: Picture(
            layers.picture(before.widths, {"Widths": widths}, drawn),
            "Neurons of each group before (grey) and after: means over seeds, and the range from "
            "the smallest to the largest.",
        ),
        FLOPS: Picture(
            flops_left(
                {arm: _against_flops(cut, arm, "cut_accuracy") for arm in relaxed},
                {arm: _against_flops(at_ends, arm) for arm in relaxed},
                dense,
                [1, *(share for share in config.flops if share)],
                drawn,
            ),
            "Test accuracy right after each cut, and at the end of its stage, against the FLOPs "
            "of the neurons that are left. Dashed: dense networks that trained as long.",
        ),
    }


def _against_flops(records: Records, arm: str, key: str = "test_accuracy") -> style.Curve:
    """Shares of the FLOPs, and accuracies (points, seeds)."""
    points = [record[arm] for record in records if key in record[arm]]
    shares = [float(np.mean(point["flops"])) for point in points]
    return shares, np.asarray([point[key] for point in points])


def write_up(outcome: Outcome, summary: dict[str, Any]) -> Writeup:
    """The result, for people."""
    config, s = outcome.config, outcome.study
    columns, rows = small.table(summary["networks"], summary["latency"])
    thresholds = ", ".join(f"{t:g}" for t in [*config.thresholds, config.final_threshold])
    return Writeup(
        title="Continuous relaxation",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds, {summary['steps']:,} steps "
            f"in {len(s.stages)} stages with thresholds {thresholds}. Mean ± standard deviation "
            "over seeds, and " + small.READING
        ),
        columns=columns,
        rows=rows,
        notes=f"Gated and compacted networks: {small.difference(summary)}",
        pictures=pictures(outcome, summary),
        layers={"all networks": repr(s.neurons.structure)},
        models=[model_path(arm) for arm in s.arms if arm != DENSE],
        of_layers="The neurons that have gates, and what goes with them",
        saved="The compacted networks of all seeds are in {models}: read one with "
        "`recipes.common.small.load`.",
    )
