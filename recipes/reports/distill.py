"""What `recipes.distill` tells: its numbers, its report, its pictures, and the file of the sets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

import jaxprune as jp
from recipes.common import cli, folder, report
from recipes.common.data import Dataset
from recipes.common.figures import images as pictures
from recipes.common.report import Writeup, finish

if TYPE_CHECKING:
    from recipes.distill import Config, Made

SETS = "distilled.npz"
IMAGES, LOSS = "plots/images.png", "plots/loss.png"
ARMS = ("distilled", "random real", "herding", "all real")


def write(
    config: Config,
    dataset: Dataset,
    made: Made,
    factor: int,
    losses: list[dict[str, Any]],
    tested: dict[str, Any],
    seconds: float,
    chance: float,
) -> dict[str, Any]:
    """Writes the folder of the run; returns what summary.json holds."""
    sets = np.asarray(jp.distill.multi_formation(made.images, factor))
    folder.write(config.out / SETS, npz(config, dataset, sets))
    summary = {
        "recipe": "distill",
        "studies": "test accuracy of fresh networks trained on a few images a class",
        "dataset": config.dataset,
        "model": config.model,
        "method": config.method,
        "seeds": config.seeds,
        "images_per_class": config.images_per_class,
        "factor": factor,
        "iterations": config.iterations,
        "steps": config.steps,
        "augment": config.augment,
        "loss": {
            "first": report.over_seeds(losses[0]["loss"]),
            "last": report.over_seeds(losses[-1]["loss"]),
        },
        "arms": {
            arm: {
                "training_images": len(dataset.train.labels)
                if arm == "all real"
                else sets.shape[1]
                * config.images_per_class
                * (factor**2 if arm == "distilled" else 1),
                "test_accuracy": report.accuracy(tested[arm], chance),
            }
            for arm in ARMS
        },
        "seconds_to_distill": losses[-1]["seconds"],
        "seconds": round(seconds, 2),
        "chance": chance,
        "peak_memory_bytes": report.peak_memory_bytes(),
        "environment": folder.environment(),
    }
    steps = [record["step"] for record in losses]
    along = {int(step): np.asarray(images)[0] for step, images in made.along.items()}
    figures = {
        IMAGES: pictures.over_time(along, dataset.mean, dataset.std),
        LOSS: pictures.loss(steps, np.array([record["loss"] for record in losses])),
    }
    finish(config.out, write_up(config, summary), summary, figures)
    return summary


def npz(config: Config, dataset: Dataset, sets: np.ndarray) -> bytes:
    """The sets, and what a reader needs to use them."""
    seeds, classes, n = sets.shape[:3]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=sets.reshape(seeds, classes * n, *sets.shape[3:]),
        labels=np.repeat(np.arange(classes, dtype=np.int32), n),
        mean=dataset.mean,
        std=dataset.std,
        dataset=config.dataset,
        method=config.method,
    )
    return file.getvalue()


def write_up(config: Config, summary: dict[str, Any]) -> Writeup:
    """The result, for people."""
    arms = summary["arms"]
    peak = summary["peak_memory_bytes"] / 1e9
    return Writeup(
        title="Distilled data",
        headline=(
            f"{config.images_per_class} stored images a class of {config.dataset}, "
            f"{config.iterations:,} steps of {config.method} matching, {config.seeds} seeds; test "
            f"accuracy of fresh networks ({config.model}) after {config.steps:,} steps on each set"
        ),
        columns=("training images", "test accuracy"),
        rows=[
            (arm, f"{of['training_images']:,}", report.percent(of["test_accuracy"]))
            for arm, of in arms.items()
        ],
        footline=(
            f"{summary['seconds_to_distill']:.0f} s to distill, {summary['seconds']:.0f} s in all, "
            f"peak memory {peak:.2f} GB"
        ),
        command=cli.again(config),
        pictures={
            IMAGES: "The first image of each class, from the real image that it begins with to the "
            "end; on the right all images of the first set.",
            LOSS: "The loss of the images: the mean over seeds, and the range from the lowest to "
            "the highest.",
        },
        layers={},
        models=[SETS],
        environment=summary["environment"],
        saved=(
            "The images (seeds, classes * n, height, width, channels), normalized, their labels, "
            "and the mean and the deviation that they were normalized by are in {models}."
        ),
        of_layers="",
    )
