"""A picture of each method: `python -m recipes.gallery --help`.

Runs every block of Python in .docs/pages/methods.md on the digits, and draws the masks. A picture
holds the lines that made it, so that a test can tell when it is out of date.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from recipes.common import cli, flags, folder
from recipes.common.figures.gallery import Drawing, draw, source
from recipes.common.folder import RecipeError

PAGE = Path(__file__).parents[1] / ".docs" / "pages" / "methods.md"
STEPS = 400
BLOCK = re.compile(r"^(?:## (.+?)|```python\n(.*?)^```)$", re.MULTILINE | re.DOTALL)
Names = dict[str, Any]  # what a block of Python defines


@dataclass(frozen=True)
class Config:
    """The pictures of the methods, made by the lines that stand beside them."""

    out: Path = PAGE.parent / "figures" / "methods"
    """The folder to write to; pictures that are there are replaced."""
    only: Annotated[str | None, flags.default("all whose lines have changed")] = None
    """Draw only the methods whose names hold this, also if their lines are the same."""


def gallery(config: Config) -> list[Path]:
    """Draws the pictures that are missing, out of date, or named by --only; returns the files."""
    common, methods = blocks(PAGE.read_text())
    wanted = config.only
    if wanted is not None:
        methods = {name: own for name, own in methods.items() if wanted.lower() in name.lower()}
        if not methods:
            raise RecipeError(f"--only '{wanted}' is in the name of no method of {PAGE.name}")
    drawn = []
    for name, lines in methods.items():
        path = config.out / f"{slug(name)}.png"
        if wanted is None and path.exists() and source(path) == common + lines:
            continue
        drawing = jax.jit(lambda lines=lines: outcome(run_lines(common, lines)))()
        path.parent.mkdir(parents=True, exist_ok=True)
        folder.write(path, draw(drawing, common + lines))
        print(path, flush=True)
        drawn.append(path)
    return drawn


def blocks(text: str) -> tuple[str, dict[str, str]]:
    """(the lines that all methods share, {method: its lines}) of the page."""
    common, methods, title = "", {}, ""
    for heading, lines in BLOCK.findall(text):
        if heading:
            title = heading
        elif title:
            methods[title] = lines
        else:
            common = lines
    return common, methods


def slug(name: str) -> str:
    """The name of a picture, and of its heading in a link, as Markdown has it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", name).lower())


def run_lines(common: str, lines: str) -> Names:
    """The names that the lines of a method define."""
    names: Names = {"__name__": "gallery"}
    exec(compile(common, "methods.md", "exec"), names)
    exec(compile(lines, "methods.md", "exec"), names)
    return names


def outcome(names: Names) -> Drawing:
    """The drawing, chosen by the names that a method defines; pure, to be jitted."""
    if "rates" in names:
        return rates(names)
    if "children" in names:
        return soup(names)
    if "over_phases" in names:
        return Drawing("phase", jax.vmap(seen)(names["over_phases"]))
    if "penalty" in names:
        return scales(names)
    return learned(names) if "objective" in names else masks(names)


def seen(masks: Any, at_first: Any = None) -> tuple[jax.Array, ...]:
    """The shares that masks or gates keep, for a `Drawing` over time.

    Of each layer (layers,), of each pixel (64,) and of each neuron of the first layer (100,); and
    the share of the kept weights that were kept at first.
    """
    now, still = _kernels(masks), jnp.ones(())
    if at_first is not None:
        pairs = zip(now, _kernels(at_first), strict=True)
        both = jnp.stack([jnp.sum(m * n) for m, n in pairs]).sum()
        still = both / jnp.stack([m.sum() for m in now]).sum()
    return jnp.stack([m.mean() for m in now]), now[0].mean(1), now[0].mean(0), still


def _kernels(masks: Any) -> list[jax.Array]:
    kernels = [own["kernel"] for own in masks.values()]  # the order is that of the layers
    return [mask.astype(jnp.float32) for mask in kernels if mask is not None]


def masks(names: Names) -> Drawing:
    """Trains with `tx`; where the weights are dense the gradient is that at the masked ones."""
    tx = names["tx"]

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        now = jp.get_masks(state)
        grads = jax.grad(names["loss"])(jp.apply_masks(params, now))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), seen(now, at_first)

    start = names["params"], tx.init(names["params"])
    at_first = jp.get_masks(start[1])
    return Drawing("step", jax.lax.scan(step, start, length=STEPS)[1])


def learned(names: Names) -> Drawing:
    """Trains weights and logits on `objective`; gates and multipliers learn faster.

    With a `method`, a reparameterization, `objective` and `kept` read what its `init` makes.
    """
    fast = optax.adam(0.05, b2=0.9)
    tx = optax.partition({"weights": optax.adam(3e-3), "fast": fast}, ("weights", "fast"))
    kept = names.get("kept", lambda weights, logits, step: names["gate"].p_open(logits))
    if "method" in names:
        made = names["method"].init(names["params"])
        start, arguments = tuple(made), lambda own: (made._make(own),)
    else:
        start, arguments = (names["params"], names["logits"]), lambda own: own

    def step(carry: Any, i: jax.Array) -> Any:
        own, state = carry
        key = jax.random.fold_in(names["key"], i)
        grads = jax.grad(lambda own: names["objective"](*arguments(own), key, i))(own)
        updates, state = tx.update(grads, state, own)
        return (optax.apply_updates(own, updates), state), seen(kept(*arguments(own), i))

    log = jax.lax.scan(step, (start, tx.init(start)), jnp.arange(STEPS))[1]
    return Drawing("gates", log)


def scales(names: Names) -> Drawing:
    """Trains with `tx` on the loss and the `penalty`; of the hidden neurons."""
    tx = names["tx"]

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.grad(lambda p: names["loss"](p) + names["penalty"](p))(params)
        updates, state = tx.update(grads, state, params)
        hidden = [jnp.abs(params[f"Dense_{i}"]["scale"][0]) for i in (0, 1)]
        return (optax.apply_updates(params, updates), state), jnp.concatenate(hidden)

    start = names["params"], tx.init(names["params"])
    return Drawing("scales", (jax.lax.scan(step, start, length=STEPS)[1],))


def soup(names: Names) -> Drawing:
    """The test error on the lines between all children, and of their average."""
    test = names["digits"].test
    images = test.images.reshape(len(test.labels), -1)

    def error(params: Any) -> jax.Array:
        return jnp.mean(jnp.argmax(names["apply"](params, images), -1) != test.labels)

    between = jp.pairwise(
        lambda a, b: jp.analysis.loss_along(error, a, b)[1], names["children"], diagonal=0
    )
    upper = jnp.triu_indices(len(between), k=1)
    return Drawing("soup", (between[upper], error(names["average"])))


def rates(names: Names) -> Drawing:
    """The rates of the first training, and of retraining by name."""
    of = lambda schedule, steps: jax.vmap(schedule)(jnp.arange(steps))
    first = of(names["first"], STEPS)
    return Drawing(
        "rates", (first, {name: of(own, STEPS // 4) for name, own in names["rates"].items()})
    )


main = cli.command(Config, gallery)

if __name__ == "__main__":
    main()
