"""Several processes that are one program: started here, or joined where a launcher started them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
from jax.experimental import multihost_utils

from recipes.common.folder import RecipeError

COORDINATOR, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
PATIENCE = 60.0  # seconds for what was told to stop


def was_started() -> bool:
    """Whether `start` (or another launcher that sets its variables) made this process."""
    return INDEX in os.environ


def join() -> None:
    """Makes this process one of several, where there are several; before any use of a device.

    TPU pods, SLURM, Open MPI and GKE are recognized by JAX itself; elsewhere the launcher sets the
    three variables above. Where nothing of this is found the process stays alone.
    """
    if was_started():
        jax.distributed.initialize(
            os.environ[COORDINATOR], int(os.environ[COUNT]), int(os.environ[INDEX])
        )
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise


def start(command: Sequence[str], processes: int, devices: int) -> int:
    """Runs `command` as so many processes on this machine, with CPU devices; the first exit code.

    Ctrl-C and SIGTERM are handed to all as one SIGTERM, so that they stop at the same step; a
    second one ends them at once. If one dies the others are ended.

    Args:
      devices: of all processes together.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // processes}"
    shared = {
        **os.environ,
        COORDINATOR: f"127.0.0.1:{port}",
        COUNT: str(processes),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip(),
    }
    children = [
        subprocess.Popen(command, env={**shared, INDEX: str(i)}, start_new_session=True)
        for i in range(processes)
    ]

    def forward(signum: int, frame: object) -> None:
        for child in children:
            child.kill() if asked else child.terminate()
        asked.append(signum)

    asked: list[int] = []
    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _first_exit(children)
    finally:
        for child in children:
            child.kill()
            child.wait()
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _first_exit(children: Sequence[subprocess.Popen]) -> int:
    """The exit code of the first that ends, once the others have had time to end too."""
    while all(child.poll() is None for child in children):
        time.sleep(0.1)
    first = next(child.returncode for child in children if child.returncode is not None)
    deadline = time.monotonic() + (PATIENCE if first in (0, 128 + signal.SIGTERM) else 5)
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    codes = [child.poll() for child in children]
    return first if first else next((code for code in codes if code), 0)


def is_first() -> bool:
    """Whether this process is the one that writes what only one may."""
    return jax.process_index() == 0


def first_only(error: RecipeError | None) -> None:
    """Raises on all processes what the first has found wrong (None: nothing); all call it."""
    wrong = multihost_utils.broadcast_one_to_all(jax.numpy.int32(error is not None))
    if error is not None:
        raise error
    if int(wrong):
        sys.exit(2)  # the first says why
