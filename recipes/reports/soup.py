"""The numbers, the report and the figures of `recipes.soup`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

import jaxprune as jp
from recipes.common import checkpoints, dead, folder, lanes, measures, report, shift
from recipes.common.figures import pairs, style
from recipes.common.figures.pairs import Paths
from recipes.common.lanes import Network
from recipes.common.report import Picture, Writeup

if TYPE_CHECKING:
    from recipes.soup import Config, Lineages, Study

LEAST, MOST = 0.5, 1.5  # factors of the setting in which children differ, evenly spaced
SOUP, GREEDY, BEST, MEAN = "soup", "greedy soup", "best child", "mean child"
ENSEMBLE, IMP = "ensemble", "IMP"
SOUPS, BARRIERS, PATHS, LAYERS = (
    f"plots/{name}.png" for name in ("soups", "barriers", "paths", "layers")
)

Records = list[dict[str, Any]]  # the lines of metrics.jsonl, one a phase


def longer_name(children: int) -> str:
    """The name of the network that retrains as long as all children together."""
    return f"{IMP} {children}x"


def write(
    config: Config, s: Study, ends: Lineages, records: Records, seconds: float, chance: float
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    first, *after = records
    arms = list(after[0]["test_accuracy"])
    empty = dict.fromkeys(arms, dead.empty_layers(ends.soup.masks))  # after the last phase
    empty[IMP] = dead.empty_layers(ends.imp.masks)
    empty[longer_name(config.children)] = dead.empty_layers(ends.longer.masks)
    phases = [
        of_phase(record, config.children, chance, empty if record is after[-1] else {})
        for record in after
    ]
    checkpoints.save_model(config.out / folder.MODEL, *ends.soup)
    summary = report.summary(
        config,
        "sparse model soups beside their children and iterative magnitude pruning",
        children=config.children,
        vary=config.vary,
        average=config.average,
        steps=s.steps,
        retraining_steps=s.retrain,
        points=config.points,
        threshold_points=config.threshold,
        running_statistics="recalibrated" if config.norm == "batch" else None,
        chance=chance,
        dense={"test_accuracy": report.accuracy(first["test_accuracy"]["dense"], chance)},
        phases=phases,
        seconds=round(seconds, 2),
        phase_seconds=[record["seconds"] for record in records],
        **shift.summary(after[-1].get("shift", {})),
    )
    return report.finish(config, write_up(config, ends.soup, records, summary), summary)


def judge(
    config: Config,
    s: Study,
    children: Any,
    greedy: jp.soups.GreedySoup,
    others: list[Any],
    is_last: bool,
) -> dict[str, Any]:
    """Accuracies on test data, and the choices on validation data; lists are over seeds."""
    m, seeds = config.children, config.seeds
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), children)
    everyone = lanes.join(flat, *others)
    test, validation = (np.split(of(everyone), [m * seeds]) for of in (s.test, s.validate))
    of_children, chosen_by = (part[0].reshape(seeds, m) for part in (test, validation))
    best = chosen_by.argmax(1)  # the first of equal ones

    def by_arm(
        of_children: np.ndarray, others: np.ndarray, together: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Of (..., seeds, children) and (..., 4, seeds) each arm's (..., seeds)."""
        uniform, greedily, imp, longer = np.moveaxis(others, -2, 0)
        return {
            SOUP: uniform,
            GREEDY: greedily,
            BEST: of_children[..., np.arange(seeds), best],
            MEAN: of_children.mean(-1),
            **together,
            IMP: imp,
            longer_name(m): longer,
        }

    together = {ENSEMBLE: s.together(children)}
    accuracy = by_arm(of_children, test[1].reshape(4, seeds), together)
    shifted: dict[str, dict[str, Any]] = {}
    for kind, values in s.shift(everyone).items() if s.shift and is_last else ():
        own, rest = np.split(values, [m * seeds], -1)
        first = values.shape[:-1]
        parts = by_arm(own.reshape(*first, seeds, m), rest.reshape(*first, 4, seeds), {})
        for arm, numbers in parts.items():
            shifted.setdefault(arm, {})[kind] = lists(numbers)
    return {
        **({"shift": shifted} if shifted else {}),
        "test_accuracy": {arm: lists(values) for arm, values in accuracy.items()},
        "children_test_accuracy": lists(of_children),
        "children_validation_accuracy": lists(chosen_by),
        "soup_validation_accuracy": lists(validation[1].reshape(4, seeds)[0]),
        "best_child": best.tolist(),
        "greedily_chosen": np.asarray(greedy.chosen).tolist(),
    }


def lists(values: Any) -> Any:
    """Numbers as JSON takes them."""
    return np.asarray(values, np.float64).tolist()


def of_phase(
    record: dict[str, Any], children: int, chance: float, empty: Mapping[str, dict[str, int]]
) -> dict[str, Any]:
    """The numbers of a phase; `empty` are the empty layers of each arm."""
    accuracy = {arm: np.asarray(values) for arm, values in record["test_accuracy"].items()}
    at_chance = bool((np.asarray(record["children_test_accuracy"]) <= chance).any())
    between = partial(measures.over_siblings, children=children, at_chance=at_chance)
    return {
        "phase": record["phase"],
        "sparsity": record["sparsity"],
        "kept_weights": record["kept_weights"]["soup"],
        "test_accuracy": {
            arm: report.accuracy(own, chance, empty.get(arm, {})) for arm, own in accuracy.items()
        },
        "soup_minus": {
            arm: _difference(accuracy[SOUP] - own) for arm, own in accuracy.items() if arm != SOUP
        },
        "error_barrier": between(record["error_barrier"]),
        "loss_barrier": between(record["loss_barrier"]),
        "highest_error_barrier": None if at_chance else float(np.max(record["error_barrier"])),
        "greedily_chosen": np.sum(record["greedily_chosen"], 1).tolist(),
    }


def _difference(per_seed: np.ndarray) -> dict[str, Any]:
    """{mean, error, per_seed} of differences between networks of one seed."""
    error = float(per_seed.std(ddof=1) / np.sqrt(len(per_seed))) if len(per_seed) > 1 else None
    return {"mean": float(per_seed.mean()), "error": error, "per_seed": per_seed.tolist()}


def pictures(
    config: Config, soups: Network, records: Records, summary: dict[str, Any]
) -> dict[str, Picture]:
    """The figures, by their path below the folder of the run."""
    after = records[1:]
    sparsities = [record["sparsity"] for record in after]
    accuracy = {
        arm: np.asarray([record["test_accuracy"][arm] for record in after])
        for arm in after[0]["test_accuracy"]
    }
    gain = {arm: values - accuracy[MEAN] for arm, values in accuracy.items() if arm != MEAN}
    dense = np.asarray(records[0]["test_accuracy"]["dense"])
    heights = [np.asarray(record["error_barrier"]) for record in after]
    for values, told in zip(heights, summary["phases"], strict=True):
        if told["error_barrier"]["mean"] is None:  # at chance: not drawn
            values[:] = np.nan
    alphas = np.linspace(0, 1, config.points)
    panels = {
        f"Children, {100 * record['sparsity']:.4g} % sparse": Paths(
            alphas, np.asarray(record["error_on_paths"]).reshape(-1, config.points)
        )
        for record in (after[:1] + after[-1:] if len(after) > 1 else after)
    }
    return {
        SOUPS: Picture(
            pairs.soups(sparsities, accuracy, gain, MEAN, dense, SOUP),
            "Left: means over seeds, and a band from the worst soup to the best. Right: each dot "
            "is a seed, beside the mean of its children; with the mean over seeds and its standard "
            f"error. {longer_name(config.children)} retrains as long as all children together; the "
            "ensemble runs all of them.",
        ),
        BARRIERS: Picture(
            pairs.barriers(sparsities, heights, config.threshold),
            "By how many points the test error rises above the chord between every two children "
            "of a seed: below the dashed line they are linearly connected. With a child at chance "
            "there is no dot.",
        ),
        PATHS: Picture(
            pairs.along_paths(panels, config.threshold, "child"),
            "Test error from child to child, every pair of every seed: in the first phase and in "
            "the last.",
        ),
        LAYERS: Picture(
            style.layer_density({SOUP: report.layer_density(soups.masks)}),
            "Weights kept in each layer: mean and standard deviation over seeds.",
        ),
        **shift.pictures(after[-1].get("shift", {})),
    }


def write_up(config: Config, soups: Network, records: Records, summary: dict[str, Any]) -> Writeup:
    """The result, for people: a column for each phase."""
    after, dense = summary["phases"], summary["dense"]["test_accuracy"]
    arms = list(after[0]["test_accuracy"])

    def row(name: str, say: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(say(phase) for phase in after)]

    def points(numbers: dict[str, Any]) -> str:
        return report.plus_minus(numbers, 2, 100)

    rows = [
        row(arm, lambda phase, arm=arm: report.percent(phase["test_accuracy"][arm]))  # type: ignore[misc]
        for arm in arms
    ]
    for arm in (MEAN, BEST, longer_name(config.children)):
        rows.append(
            row(f"soup - {arm}", lambda phase, arm=arm: points(phase["soup_minus"][arm]))  # type: ignore[misc]
        )
    rows.append(row("barrier of children", lambda phase: points(phase["error_barrier"])))
    varied = config.vary.replace("_", " ")
    if config.vary != "order":
        varied += f" ({LEAST:g} to {MOST:g} times)"
    batch_norm = (
        "; running statistics made anew for every network" if config.norm == "batch" else ""
    )
    return Writeup(
        title="Sparse model soups",
        headline=(
            f"{config.model} on {config.dataset}, {config.seeds} seeds x {config.children} "
            f"children that differ in {varied}, {summary['steps']:,} steps, then "
            f"{summary['retraining_steps']:,} in each phase; dense "
            f"{report.percent(dense)}. Test accuracy with standard deviation "
            "over seeds; differences and barriers in points, with standard error over seeds; what "
            f"is chosen, on {100 * config.validation:g} % of train{batch_norm}"
        ),
        columns=[f"{100 * phase['sparsity']:.4g} % sparse" for phase in after],
        rows=rows,
        pictures=pictures(config, soups, records, summary),
        layers={SOUP: report.layers_of_first(soups)},
        models=[folder.MODEL],
        more=shift.tables(records[-1].get("shift", {})),
    )
