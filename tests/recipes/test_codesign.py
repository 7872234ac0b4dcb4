"""The search trains narrow networks inside a wide one, and asks for the same trials again."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recipes.common import exported, hls, search
from recipes.common.models import classification
from recipes.common.models.searched import Architecture, Searched, Widest, narrowed
from recipes.reports import codesign as report


@pytest.mark.parametrize(
    ("widths", "slope", "normed"),
    [((3, 5), 0.0, False), ((4, 0), 0.1, True)],
)
def test_a_cut_network_trains_as_the_narrow_network_alone(widths, slope, normed):
    widest, images = Widest(2, 6, 3), jax.random.normal(jax.random.key(0), (8, 2, 2, 1))
    labels, of = jnp.arange(8) % 3, Architecture(np.array(widths), slope, normed)
    variables = widest.init(jax.random.key(1), images)
    cut = narrowed(variables["params"], of), {**variables["batch_stats"], **of._asdict()}
    narrow = Searched(tuple(filter(None, widths)), slope, normed, 3)
    template = narrow.init(jax.random.key(2), images)
    first = lambda tree, like: jax.tree.map(
        lambda x, y: x[tuple(slice(n) for n in y.shape)], {name: tree[name] for name in like}, like
    )
    alone = (
        first(cut[0], template["params"]),
        first(cut[1], template.get("batch_stats", {})),
    )

    def trained(module, params, batch_stats):
        # no Adam: a bias before a norm has a slope of rounding errors, which Adam makes large
        loss, sgd = classification(module), optax.sgd(0.1, momentum=0.9)
        opt_state = sgd.init(params)

        @jax.jit
        def step(params, batch_stats, opt_state):
            grads, (_, batch_stats) = jax.grad(loss, has_aux=True)(
                params, batch_stats, images, labels
            )
            updates, opt_state = sgd.update(grads, opt_state)
            return optax.apply_updates(params, updates), batch_stats, opt_state

        for _ in range(4):
            params, batch_stats, opt_state = step(params, batch_stats, opt_state)
        return params, batch_stats

    wide, small = trained(widest, *cut), trained(narrow, *alone)
    for tree, like in zip(wide, small, strict=True):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
            first(tree, like),
            like,
        )


def test_the_front_has_the_points_that_no_other_beats():
    points = [(1.0, 5.0), (2.0, 2.0), (3.0, 3.0), (2.0, 2.0), (1.0, 6.0)]
    assert search.front(points).tolist() == [True, True, False, True, False]


def test_a_search_that_is_told_the_same_asks_for_the_same():
    what = {"width": (1, 2, 4), "rate": (1e-3, 1e-1)}, 4, 0, {"width": 4, "rate": 0.01}

    def asked():
        made, trials = search.Search(*what), []
        for _ in range(3):
            now = made.ask()
            made.tell([(trial["rate"], trial["width"]) for trial in now])
            trials.append(now)
        return trials

    trials = asked()
    assert trials == asked()
    assert trials[0][0] == what[-1]
    assert len({tuple(trial.values()) for now in trials for trial in now}) > 6


def test_the_exported_network_needs_no_code_and_no_other_example(tmp_path):
    images = jax.random.normal(jax.random.key(0), (6, 2, 2, 1))
    module = Searched((5, 4), 0.1, True, 3, bits=4)
    variables = module.init(jax.random.key(1), images)
    for i in range(3):
        _, moved = module.apply(variables, (1 + i) * images, train=True, mutable=["batch_stats"])
        variables = {**variables, **moved}
    exported.save(tmp_path / exported.FILE, module, variables, (2, 2, 1))
    network = jax.export.deserialize((tmp_path / exported.FILE).read_bytes())
    np.testing.assert_allclose(
        network.call(images), module.apply(variables, images), rtol=1e-5, atol=1e-6
    )
    alone = [network.call(image[None])[0] for image in images]
    np.testing.assert_allclose(network.call(images), alone, rtol=1e-5, atol=1e-6)


def test_the_network_exported_is_the_cheapest_that_is_good_enough():
    def of(errors, bops):
        return {"validation_error": errors, "bops": bops}

    rounds = [
        {
            "round": 0,
            "first trial": of([0.1, 0.1], 9),
            "8 bits": of([0.1, 0.08], 5),
            "4 bits": of([0.2, 0.3], 3),
        },
        {
            "round": 1,
            "first trial": of([0.1, 0.1], 9),
            "8 bits": of([0.13, 0.09], 4),
            "4 bits": of([0.3, 0.3], 2),
        },
    ]
    assert report.best(rounds, 0.12) == ("8 bits", 1)
    assert report.best(rounds, 0.35) == ("4 bits", 0)
    assert report.best(rounds, 0.01)[0] == "8 bits"


@pytest.mark.full
@pytest.mark.parametrize("bits", [5])
def test_the_project_of_hls4ml_gives_the_same_bits(bits, tmp_path):
    """In a process of its own, because Keras chooses its backend when it is imported."""
    if hls.lacks():
        pytest.skip(hls.lacks())
    program = f"""
        import pathlib, jax, numpy as np
        from recipes.codesign import fixed_point
        from recipes.common import hls
        from recipes.common.models.searched import Searched

        images = jax.random.uniform(jax.random.key(0), (20, 4, 1, 1))
        module = Searched((3,), 0.0, False, 2, bits={bits})
        variables = module.init(jax.random.key(1), images)
        _, moved = module.apply(variables, images, train=True, mutable=["batch_stats"])
        shifted = jax.tree.map(lambda x: x + 0.03, variables["params"])
        variables = {{**variables, **moved, "params": fixed_point({bits}, shifted)}}
        assert hls.write(pathlib.Path("project"), variables, {bits}, images) == 20
        model = hls._keras_model(variables, {bits}, 4)
        logits = np.asarray(model(np.reshape(images, (20, 4))))
        np.testing.assert_array_equal(logits, module.apply(variables, images))
        assert pathlib.Path("project/firmware/parameters.h").exists()
    """
    where = {**os.environ, "PYTHONPATH": str(Path.cwd()), "KERAS_BACKEND": "jax"}
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, cwd=tmp_path, env=where, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
