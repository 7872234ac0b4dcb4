"""A published network, pruned: Magika at half of its FLOPs: `python -m recipes.published --help`.

Reads the network of the wheel `magika`, which tells the type of a file, and files of this machine.
The network's own answers are the labels. Channels are scored and removed until a share of the FLOPs
is left, the weights that read them make up for them, and the smaller network is tuned to answer as
the full one does; then its weights go onto a grid of 8 bits. The table shows how many files of a
held-out part have the same answer, and measured times in JAX and in onnxruntime.

References: Fratantonio et al., 2024 (Magika); Wang et al., 2024 (OBSPA: scores and update);
Molchanov et al., 2019 (Taylor); Hinton et al., 2015 (answers of a teacher).
"""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprune as jp
from jaxprune.structured import Compact, Structure
from recipes.common import cli, files, flags, folder, magika, onnx, settings
from recipes.common.files import Files
from recipes.common.folder import RecipeError
from recipes.common.magika import Magika
from recipes.common.onnx.timed import Both, latencies
from recipes.common.terminal import progress
from recipes.reports import published as report

SCORES = ("taylor", "obspa", "activations", "l1")
BATCHES = (1, 32)  # of the times


@dataclass(frozen=True)
class Config(settings.Run):
    """Magika at a share of its FLOPs, tuned by its own answers to files of this machine."""

    out: Path = Path("runs/published")
    files: Annotated[
        tuple[Path, ...], flags.default("the Python installation and its site-packages")
    ] = ()
    """Folders with files of many types."""
    test_files: flags.Count = 400
    """Files that are held out: so many as they come, and so many of all extensions."""
    per_extension: flags.Count = 40
    """At most so many of the other files have the same extension."""
    calibration: flags.Count = 64
    """Other files, which --score and the update of the weights read."""
    flops: Annotated[float, flags.within("(0, 1)")] = 0.5
    """The share of the FLOPs that is left."""
    score: Annotated[str, flags.choice(SCORES)] = "taylor"
    """The score of a channel."""
    update: Annotated[str, flags.choice(("none", "obspa"))] = "none"
    """Before tuning, the weights that read pruned channels make up for them."""
    channels: Annotated[str, flags.choice(("all", *magika.GROUPS))] = "bytes"
    """The channels that may be pruned: of the table of bytes, of the convolution, or all."""
    round_to: flags.Count = 1
    """The number of channels that are kept is a multiple of this."""
    seeds: settings.Seeds = 3
    """How often the smaller network is tuned, each time with the files in another order."""
    seed: Annotated[int, flags.at_least(0)] = 0
    """The first seed; the choice of the files depends on it too."""
    steps: flags.Count = 150
    """Steps of tuning."""
    batch_size: flags.Count = 8
    """Files of a step."""
    tune_all: bool = False
    """Tune the table of bytes and its norm too, not only the layers after them: a step then takes
    half as long again."""
    learning_rate: flags.Positive = 5e-4
    """The highest rate of Adam; it falls to zero by a cosine."""
    bits: Annotated[int, flags.at_least(2, 16)] = 8
    """Bits of the weights after tuning."""
    rounds: flags.Count = 9
    """How often each network is timed, in another random order each time."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        for one in self.files:
            if not one.is_dir():
                yield f"--files '{one}' is no folder"


class Study(NamedTuple):
    """What all stages share."""

    config: Config
    magika: Magika
    fn: Callable[..., jax.Array]  # of the full network
    params: Mapping[str, jax.Array]
    structure: Structure
    tests: Mapping[str, Files]  # held out, by how they were chosen
    rest: Files
    answers: np.ndarray  # probabilities of the full network, (files of the rest, types)


# --- the stages -----------------------------------------------------------------------------------


def published(config: Config) -> dict[str, Any]:
    """Prunes, tunes, times, writes the folder `config.out`; returns what summary.json holds."""
    folder.check_out(config.out, config.overwrite)
    own = magika.load()
    folder.start(config.out, cli.to_yaml(config), config.overwrite)
    began = time.perf_counter()
    s = study_of(config, own)
    kept = pick(s)
    small = jp.compact(s.structure, updated(s, kept), kept)
    cut = jp.structured.shrink(s.structure, s.params, kept)
    tuned = tune(s, small)
    coarse = [on_grid(s, small.fn, params)[0] for params in tuned]
    networks = {
        "full": (s.fn, [s.params]),
        "pruned": (small.fn, [cut]),
        **({"updated": (small.fn, [small.params])} if config.update != "none" else {}),
        "tuned": (small.fn, tuned),
        f"tuned, {config.bits} bits": (small.fn, coarse),
    }
    told = {
        name: {
            test: [answers(fn, params, held.windows, name) for params in each]
            for test, held in s.tests.items()
        }
        for name, (fn, each) in networks.items()
    }
    path = config.out / folder.MODEL / "magika.onnx"
    folder.write(path, onnx.resized(s.magika.path, as_file(s, tuned[0], kept)))
    pair = {"full": Both(s.fn, s.params, own.path), "tuned": Both(small.fn, tuned[0], path)}
    seconds = latencies(pair, s.rest.windows, BATCHES, config.rounds, config.seed)
    bits = on_grid(s, small.fn, tuned[0])[1]
    return report.write(s, kept, told, bits, seconds, time.perf_counter() - began)


def study_of(config: Config, own: Magika) -> Study:
    """Reads the network and the files, and asks the network about the files."""
    net = onnx.network(onnx.read(own.path))
    python = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    read = partial(files.read, config.files or python, own.window)
    come = read(config.seed, config.test_files)
    others = read(config.seed, per_extension=config.per_extension, without=come)
    n, least = len(others.paths), max(config.calibration, config.batch_size)
    if n < config.test_files + least:
        raise RecipeError(
            f"{n:,} more files are too few for --test-files {config.test_files:,} and {least} to "
            "tune with; take more --files or a larger --per-extension, or hold out fewer"
        )
    tests = {"as they come": come, "of all types": others.part(0, config.test_files)}
    rest = others.part(config.test_files, n)
    structure = jp.analyze(net.fn, net.params, rest.windows[:1])
    labels = answers(net.fn, net.params, rest.windows, "labels")
    return Study(config, own, net.fn, net.params, structure, tests, rest, labels)


def pick(s: Study) -> dict[str, Any]:
    """The channels of the highest scores that the share of the FLOPs pays for."""
    config, score = s.config, jp.structured.normalized(partial(scores, s))
    groups = None if config.channels == "all" else [magika.GROUPS[config.channels]]
    pruned = partial(jp.pick, flops=config.flops, round_to=config.round_to, groups=groups)
    try:
        return pruned(s.structure, score(s.params))
    except ValueError as error:
        raise RecipeError(f"--flops: {' '.join(str(error).split())}") from error


def scores(s: Study, params: Any) -> Any:
    """What a channel is worth, by group."""
    batch = jnp.asarray(s.rest.windows[: s.config.calibration])
    if s.config.score == "obspa":
        return jp.calibration.obspa_scores(s.structure, params, [batch])
    if s.config.score == "activations":
        return jp.calibration.activation_norms(s.structure, params, [batch])
    chosen = jp.matching(layouts=jp.layouts(s.fn, params, batch))
    if s.config.score == "l1":
        return jp.structured.per_group(s.structure, prunable=chosen)(params)
    grads = jax.jit(jax.grad(own_answers, argnums=1), static_argnums=0)(s.fn, params, batch)
    per_group = jp.structured.per_group(s.structure, jp.saliency, prunable=chosen)
    return per_group(params, grads=grads)


def own_answers(fn: Any, params: Any, batch: jax.Array) -> jax.Array:
    """The cross entropy with the network's own answers, of one type for each file."""
    return -jnp.mean(jnp.log(jnp.max(fn(params, batch), -1)))


def updated(s: Study, kept: Any) -> Any:
    """The params, in which the weights that read pruned channels make up for them."""
    if s.config.update == "none":
        return s.params
    batch = jnp.asarray(s.rest.windows[: s.config.calibration])
    return jp.calibration.obspa(s.structure, s.params, kept, [batch])


def tune(s: Study, small: Compact) -> list[Any]:
    """The params of the smaller network, by seed, after it has learned the full one's answers."""
    config, n = s.config, s.config.batch_size
    tx = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    still = {name: x for name, x in small.params.items() if name in magika.FIRST}
    still = {} if config.tune_all else still

    @jax.jit
    def step(params: Any, state: Any, still: Any, windows: jax.Array, wanted: jax.Array) -> Any:
        loss = lambda params: divergence(small.fn({**params, **still}, windows), wanted)
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    found = []
    for seed in range(config.seed, config.seed + config.seeds):
        params = {name: x for name, x in small.params.items() if name not in still}
        state = tx.init(params)
        with progress(f"tuning, seed {seed}", config.steps) as show:
            for i, at in enumerate(batches(len(s.rest.paths), n, config.steps, seed)):
                params, state, loss = step(params, state, still, s.rest.windows[at], s.answers[at])
                show(i + 1, f"divergence {loss:.3f}")
        found.append({**params, **still})
    return found


def batches(files: int, size: int, steps: int, seed: int) -> np.ndarray:
    """Which files the steps read, (steps, size): all in random order, then all in another."""
    generator, epochs = np.random.default_rng(seed), -(-steps // (files // size))
    order = [generator.permutation(files)[: files // size * size] for _ in range(epochs)]
    return np.concatenate(order).reshape(-1, size)[:steps]


def divergence(p: jax.Array, wanted: jax.Array) -> jax.Array:
    """The mean KL divergence of answers p from the wanted ones, probabilities (n, types)."""
    log = lambda x: jnp.log(jnp.maximum(x, 1e-9))
    return jnp.mean(jnp.sum(wanted * (log(wanted) - log(p)), -1))


def on_grid(s: Study, fn: Any, params: Any) -> tuple[Any, int]:
    """The params with the weights of the products on one grid for each leaf, and their bits."""
    chosen = jp.matching(layouts=jp.layouts(fn, params, s.rest.windows[:1]))
    method = jp.reparam.fake_quantization(s.config.bits, prunable=chosen)
    size = jp.reparam.quantized_size(params, s.config.bits, prunable=chosen)
    return method.apply(method.init(params)), size.bits


# --- answers and files ----------------------------------------------------------------------------


def answers(fn: Any, params: Any, windows: np.ndarray, words: str) -> np.ndarray:
    """Probabilities (n, types) of windows (n, bytes), in batches; the last one is filled up."""
    run, found = jax.jit(fn), []  # params are arguments: XLA would fold constants for minutes
    batch, width = BATCHES[-1], windows.shape[1]
    with progress(f"answers, {words}", len(windows)) as show:
        for first in range(0, len(windows), batch):
            some = windows[first : first + batch]
            found.append(np.asarray(run(params, np.resize(some, (batch, width))))[: len(some)])
            show(first + len(some), "files")
    return np.concatenate(found)


def as_file(s: Study, params: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of the ONNX file of the smaller network, by name."""
    sizes = {
        name: np.array([times * params[magika.TABLE].shape[1]], np.int32)
        for name, times in magika.SIZES.items()
    }
    return {name: np.asarray(x) for name, x in params.items()} | sizes


main = cli.command(Config, published)

if __name__ == "__main__":
    main()
