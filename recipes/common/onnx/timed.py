"""Networks timed beside each other, each in JAX and as its ONNX file in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from recipes.common import timing
from recipes.common.folder import RecipeError

AGAIN = "again"  # the first network once more: its times are noise
ENGINES = ("JAX", "onnxruntime")


class Both(NamedTuple):
    """A network twice: `fn(params, x)`, and an ONNX file with one input."""

    fn: Callable[..., Any]
    params: Any
    path: Path


def latencies(
    networks: Mapping[str, Both],
    inputs: np.ndarray,
    batches: Sequence[int],
    rounds: int,
    seed: int = 0,
    tolerance: float = 1e-3,
) -> dict[str, dict[str, Any]]:
    """{"name, engine": {batch: {"seconds", "times_as_fast"}}}: of one example, and of the first.

    Raises:
      RecipeError: unless file and function give the same for the first inputs.
    """
    import onnxruntime

    providers, first = ["CPUExecutionProvider"], next(iter(networks))
    jitted = {name: jax.jit(own.fn) for name, own in networks.items()}
    sessions = {
        name: onnxruntime.InferenceSession(str(own.path), providers=providers)
        for name, own in networks.items()
    }
    found: dict[str, dict[str, Any]] = {}
    for batch in batches:
        x = np.resize(inputs, (batch, *inputs.shape[1:]))
        runs: dict[str, Callable[[], Any]] = {}
        for name, of in (*((name, name) for name in networks), (AGAIN, first)):
            session, own = sessions[of], partial(jitted[of], networks[of].params, x)
            files = partial(session.run, None, {session.get_inputs()[0].name: x})
            _check(of, own(), files()[0], tolerance)  # and compiles
            runs[f"{name}, JAX"] = partial(_finished, own)
            runs[f"{name}, onnxruntime"] = files
        seconds = timing.interleaved(runs, rounds, seed)
        measured = {name: timing.Measured(np.array(s) / batch) for name, s in seconds.items()}
        for run, times in measured.items():
            faster = timing.ratio(measured, f"{first}, {run.rpartition(', ')[2]}", run)
            told = {"seconds": timing.Spread.of(times.seconds)._asdict()}
            found.setdefault(run, {})[str(batch)] = told | {"times_as_fast": faster._asdict()}
    return found


def _finished(run: Callable[[], Any]) -> None:
    jax.block_until_ready(run())


def _check(name: str, own: Any, of_file: np.ndarray, tolerance: float) -> None:
    error = float(np.abs(np.asarray(own) - of_file).max())
    if not error <= tolerance:
        raise RecipeError(f"{name}: the ONNX file differs from the function by {error:.2g}")
