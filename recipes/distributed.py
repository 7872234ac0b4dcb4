"""One model over several processes: `python -m recipes.distributed --help`.

Trains a network whose params, masks and optimizer state are split over the devices of all
processes, with gradual magnitude pruning. The processes save together; killed in whatever way, the
run goes on from its last checkpoint to the same bits, with as many processes or others.

On one machine `--processes 2` starts them, with CPU devices. On a TPU pod or a GPU cluster start
the same command once a process, with --out on a disk that all see; they find each other:

    gcloud compute tpus tpu-vm ssh NAME --worker=all --command="python -m recipes.distributed"
    srun --ntasks-per-node=8 --gpus-per-task=1 python -m recipes.distributed
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxprune as jp
from recipes.common import cli, data, dead, flags, folder, models, report, settings
from recipes.common.folder import RecipeError
from recipes.common.models import classification
from recipes.common.terminal import Stopped, deferred_signals
from recipes.gmp import gradual
from recipes.sharded import checkpoints, layout, processes


@dataclass(frozen=True)
class Config(settings.Run):
    """One model over several processes, with gradual magnitude pruning."""

    out: Path = Path("runs/distributed")
    """The folder to write to; all processes must see it."""
    processes: Annotated[
        int | None, flags.at_least(1), flags.default("none: join those that run")
    ] = None
    """Start this many processes on this machine."""
    devices: flags.Count = 4
    """CPU devices of all these processes together."""
    model_axis: flags.Count = 2
    """Devices along the model axis of the mesh; the others are along its data axis."""

    width: Annotated[float, flags.within("(0, 100]")] = 1.0
    """A factor for the sizes of the hidden layers, 256 and 128."""
    steps: Annotated[int, flags.at_least(2)] = 100
    """Training steps."""
    batch_size: flags.Count = 128
    """Examples per step, over all devices."""
    learning_rate: Annotated[float, flags.within("(0, 1000)")] = 3e-3
    """The learning rate of Adam."""
    sparsity: flags.Fraction = 0.8
    """The fraction of weights that are pruned at the end."""
    every: flags.Count = 10
    """Steps between updates of the masks."""
    seed: Annotated[int, flags.at_least(0)] = 0
    """The seed of the weights and of the order of the data."""

    checkpoint_every: flags.Count = 20
    """Steps between checkpoints."""
    keep: flags.Count = 2
    """The number of checkpoints to keep."""
    log_every: flags.Count = 10
    """Steps between lines of metrics.jsonl."""
    resume: bool = False
    """Continue the run in --out from its last checkpoint, with its config.yaml."""

    def conflicts(self) -> Iterator[str]:
        """The mistakes of several flags together."""
        if self.processes is not None and self.devices % self.processes:
            yield f"--devices {self.devices} can't be shared by --processes {self.processes}"


class State(NamedTuple):
    """All that a step changes; how many were made is in the optimizer's state."""

    params: Any
    opt_state: optax.OptState


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` defaults to that of the process."""
    given = sys.argv[1:] if argv is None else list(argv)
    cli.main(Config, partial(start_or_train, argv=given), given)


def start_or_train(config: Config, argv: Sequence[str]) -> dict[str, Any] | None:
    """Starts the processes of --processes, or trains as one of them."""
    if config.processes is None or processes.was_started():
        processes.join()
        return train(config)
    folder.check_out(config.out, config.overwrite, config.resume)  # before any of them is started
    command = (sys.executable, "-m", "recipes.distributed", *argv)
    code = processes.start(command, config.processes, config.devices)
    if code:
        sys.exit(code if code > 0 else 128 - code)
    return None


def train(config: Config) -> dict[str, Any]:
    """Trains as one of the processes; returns what summary.json holds. All of them call it."""
    mesh = mesh_of(config)
    dataset = data.load("digits")
    settings.check_batch(config.batch_size, len(dataset.train.labels))
    like, init, step = program(config, mesh)
    _begin(config)
    saves = checkpoints.manager(config.out / folder.CHECKPOINT, config.keep)
    # a signal to one of several processes stops all: JAX hears SIGTERM, and tells the others
    signals: Any = deferred_signals() if jax.process_count() == 1 else nullcontext()
    with closing(saves), jax.set_mesh(mesh), signals as received:
        if config.resume and saves.latest_step() is not None:
            first, state = checkpoints.restore(saves, like)
            if first >= config.steps:
                raise RecipeError(f"the run in --out '{config.out}' has made all its steps")
        else:
            first, state = 0, init(jax.random.key(config.seed))
        if config.resume:  # also where the run was killed before its first checkpoint
            _forget_after(config, first)
        for now in range(first, config.steps):
            state, loss = step(state, *batch_at(dataset.train, config, now, mesh))
            if jax.default_backend() == "cpu":  # its devices share threads: steps that overlap,
                loss.block_until_ready()  # each waiting for another process, can wait for ever
            done = now + 1
            if done % config.log_every == 0 or done == config.steps:
                _log(config, done, loss, state)
            heard = received() is not None if received else saves.reached_preemption(done)
            stops = heard and done < config.steps
            if stops or done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(saves, done, state)
            if stops:
                saves.wait_until_finished()
                if not processes.is_first():
                    sys.exit(128 + signal.SIGTERM)
                raise Stopped(signal.SIGTERM, f"stopped after step {done}; go on with --resume")
        saves.wait_until_finished()
        return _finish(config, mesh, state, loss, dataset.test)


def mesh_of(config: Config) -> Mesh:
    """All devices of all processes, along two axes."""
    devices = jax.device_count()
    if devices % config.model_axis:
        raise RecipeError(
            f"--model-axis {config.model_axis} does not divide the {devices} devices of all "
            f"{jax.process_count()} processes"
        )
    data_axis = devices // config.model_axis
    if config.batch_size % data_axis:
        raise RecipeError(
            f"--batch-size {config.batch_size} can't be split over the {data_axis} devices of the "
            "data axis"
        )
    kinds = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data_axis, config.model_axis), ("data", "model"), axis_types=kinds)


def program(config: Config, mesh: Mesh) -> tuple[State, Any, Any]:
    """(shapes and layout of the state, key -> state, (state, images, labels) -> state, loss)."""
    module = models.model("mlp", 10, width=config.width)
    tx = gradual(optax.adam(config.learning_rate), config.steps, config.sparsity, config.every)
    loss_fn = classification(module)

    def init(key: jax.Array) -> State:
        params = module.init(key, jnp.zeros((1, 8, 8, 1)))["params"]
        return State(params, tx.init(params))

    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        of_params = lambda params: loss_fn(params, {}, images, labels)[0]
        loss, grads = jax.value_and_grad(of_params)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        return State(optax.apply_updates(state.params, updates), opt_state), loss

    shapes = jax.eval_shape(init, jax.random.key(0))
    params = layout.on_mesh(shapes.params, specs(shapes.params), mesh)
    like = State(params, layout.state_like(shapes.opt_state, params, mesh))
    own = layout.shardings(like)
    whole = NamedSharding(mesh, P())
    return (
        like,
        jax.jit(init, out_shardings=own),
        jax.jit(step, donate_argnums=0, out_shardings=(own, whole)),
    )


def specs(params: Any) -> Any:
    """Hidden kernels over both axes; the ten classes are not split."""
    head = {"kernel": P("data"), "bias": P()}
    return {name: {"kernel": P("data", "model"), "bias": P("model")} for name in params} | {
        max(params): head
    }


def batch_at(split: data.Split, config: Config, step: int, mesh: Mesh) -> tuple[jax.Array, ...]:
    """The batch of a step, over the data axis: a process reads only what its devices need."""
    epoch, place = divmod(step, len(split.labels) // config.batch_size)
    order = np.random.default_rng((config.seed, epoch)).permutation(len(split.labels))
    indices = order[place * config.batch_size :][: config.batch_size]

    def spread(x: np.ndarray) -> jax.Array:
        shape = (config.batch_size, *x.shape[1:])
        read = lambda index: x[indices[index[0]]]
        return jax.make_array_from_callback(shape, NamedSharding(mesh, P("data")), read)

    return spread(split.images), spread(split.labels)


def _begin(config: Config) -> None:
    """The first process checks the folder and writes config.yaml, before any other goes on."""
    error = None
    if processes.is_first():
        try:
            folder.check_out(config.out, config.overwrite, config.resume)
            if config.resume:
                folder.lock(config.out)
            else:
                folder.start(config.out, cli.to_yaml(config), config.overwrite)
        except RecipeError as found:
            error = found
    processes.first_only(error)


def _forget_after(config: Config, step: int) -> None:
    """Drops the metrics of steps that will be made again."""
    if processes.is_first():
        kept = [r for r in folder.read_lines(config.out / folder.METRICS) if r["step"] <= step]
        folder.remove(config.out / folder.METRICS)
        for record in kept:
            folder.append(config.out / folder.METRICS, record)


def _log(config: Config, step: int, loss: jax.Array, state: State) -> None:
    sparsity = jp.sparsity(jp.get_masks(state.opt_state))
    if processes.is_first():
        record = {"step": step, "loss": float(loss), "sparsity": round(float(sparsity), 7)}
        folder.append(config.out / folder.METRICS, record)
        print(f"{step}/{config.steps}  loss {record['loss']:.4f}", file=sys.stderr, flush=True)


def _tested(config: Config, mesh: Mesh, state: State, test: data.Split) -> dict[str, Any]:
    """The test accuracy of the model, as of one seed; every process computes it."""
    module = models.model("mlp", 10, width=config.width)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def look(params: Any, masks: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        logits: Any = module.apply({"params": params}, test.images)
        accuracy = jnp.mean(logits.argmax(-1) == test.labels, keepdims=True)
        return accuracy, jp.at_init.empty_layers(masks)

    found = look(state.params, jp.get_masks(state.opt_state))
    accuracy, collapsed = jax.tree.map(np.asarray, found)
    empty = {path: 1 for path, empty in collapsed.items() if empty}
    return report.accuracy(accuracy, dead.chance(test.labels), empty)


def _finish(
    config: Config, mesh: Mesh, state: State, loss: jax.Array, test: data.Split
) -> dict[str, Any]:
    masks = jp.get_masks(state.opt_state)
    summary = {
        "recipe": "distributed",
        "studies": "one model over several processes, with gradual magnitude pruning",
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "mesh": dict(mesh.shape),
        "steps": config.steps,
        "loss": float(loss),
        "chance": dead.chance(test.labels),
        "test_accuracy": _tested(config, mesh, state, test),
        "sparsity": round(float(jp.sparsity(masks)), 7),
        "params_sha256": layout.digest(state.params),
        "masks_sha256": layout.digest(masks),
    }
    if processes.is_first():
        folder.write_json(config.out / folder.SUMMARY, summary)
        folder.unlock(config.out)
        for key in ("processes", "devices", "loss", "sparsity", "params_sha256", "masks_sha256"):
            print(f"{key:14} {summary[key]}")
        print(f"{'test accuracy':14} {report.percent(summary['test_accuracy'])}")
        for sign in dead.told(summary):
            print(sign)
        print(f"Everything is in {config.out}: see {config.out / folder.SUMMARY}")
    return summary


if __name__ == "__main__":
    main()
