"""The harness on a clock of its own, what the cells do, and the recipe end to end; no times."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from recipes import bench
from recipes.benchmarks import fast_images, memory, section, seeds, steps
from recipes.common import folder, timing

TINY = ["--weights", "2000", "--leaves", "1", "--seeds", "2", "--repeats", "2", "--sample-ms", "0"]
TINY += ["--compiles", "1", "--models", "lenet", "--batch-size", "4", "--examples", "40"]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def takes(self, seconds):
        self.now += seconds


# --- the harness ---------------------------------------------------------------------------------


def test_each_round_is_a_permutation_and_they_differ():
    names = list("abcdef")
    rounds = list(timing.orders(names, 20, seed=0))
    assert all(sorted(order) == names for order in rounds)
    assert len({tuple(order) for order in rounds}) > 10
    assert rounds == list(timing.orders(names, 20, seed=0))
    assert rounds != list(timing.orders(names, 20, seed=1))


def test_ratios_are_paired_within_a_round():
    clock, visits = Clock(), []

    def cell(name, factor):
        def run():  # a machine that is twice as slow from round to round
            visits.append(name)
            clock.takes(factor * 2.0 ** ((len(visits) - 1) // 3))

        return run

    runs = {"a": cell("a", 1.0), "same": cell("same", 1.0), "b": cell("b", 3.0)}
    seconds = timing.interleaved(runs, rounds=8, seed=0, clock=clock)
    measured = {name: timing.Measured(np.asarray(own)) for name, own in seconds.items()}
    assert seconds["a"] == [2.0**i for i in range(8)]
    assert timing.ratio(measured, "b", "a") == (3.0, 3.0, 3.0)
    assert timing.noise(measured, "same", "a") == (1.0, 1.0, 1.0)
    assert [sorted(visits[i : i + 3]) for i in range(0, 24, 3)] == [["a", "b", "same"]] * 8


def test_a_slow_cell_is_paired_with_the_first_rounds():
    clock = Clock()
    passed = iter([1.0, 2.0, 4.0])
    runs = {"fast": lambda: clock.takes(next(passed)), "slow": lambda: clock.takes(10.0)}
    done = []
    seconds = timing.interleaved(runs, 3, 0, {"slow": 1}, clock, done.append)
    assert seconds == {"fast": [1.0, 2.0, 4.0], "slow": [10.0]}
    assert sorted(done) == ["fast"] * 3 + ["slow"]
    measured = {name: timing.Measured(np.asarray(own)) for name, own in seconds.items()}
    assert timing.ratio(measured, "slow", "fast").median == 10.0


def test_noise_has_no_preferred_baseline():
    measured = {
        "a": timing.Measured(np.array([1.0, 1.0, 1.0])),
        "b": timing.Measured(np.array([0.5, 0.5, 0.5])),
    }
    assert timing.noise(measured, "b", "a") == timing.noise(measured, "a", "b") == (1.0, 0.5, 2.0)


def test_quartiles():
    assert timing.Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == (3.0, 2.0, 4.0)


def test_a_step_is_chained_and_its_state_donated():
    x = jnp.arange(4.0)
    program = timing.Program(timing.Cell("add", lambda s, x: s + x, lambda: jnp.zeros(4), (x,)))
    first = program.state
    program.steps = 3
    program.run()
    assert first.is_deleted() and not x.is_deleted()
    np.testing.assert_array_equal(program.state, 3 * x)


def test_a_state_that_is_only_written_is_donated_too():
    x = jnp.arange(4.0)
    cell = timing.Cell("double", lambda _, x: 2 * x, lambda: jnp.zeros(4), (x,))
    for program in (timing.Program(cell), timing.Program(cell)):  # they share x
        first = program.state
        program.run()
        program.run()
        assert first.is_deleted()
        np.testing.assert_array_equal(program.state, 2 * x)


def test_a_sample_lasts_as_long_as_asked():
    clock = Clock()
    cell = timing.Cell("count", lambda s: s + 1, lambda: jnp.zeros(()), period=3)
    program = timing.Program(cell, clock)
    step = program.compiled

    def slowed(*args):
        clock.takes(0.001)
        return step(*args)

    program.compiled = slowed
    program.warm_up(0.02)
    assert program.steps % 3 == 0
    assert 0.02 <= 0.001 * program.steps < 0.04


def test_a_state_is_made_anew_before_a_sample_outlives_it():
    cell = timing.Cell("count", lambda s: s + 1, lambda: jnp.zeros(()), lifetime=5)
    program = timing.Program(cell, Clock())  # which stands still: no sample is long enough
    program.warm_up(0.02)
    assert program.steps == 5
    for _ in range(3):
        program.renew()
        program.run()
        assert program.state == 5


def test_seconds_are_those_of_a_step():
    ticks = itertools.count()
    cells = [
        timing.Cell("a", lambda s: s + 1, lambda: jnp.zeros(())),
        timing.Cell("b", lambda s: s + 2, lambda: jnp.zeros(()), at_most=1, period=4, times=8),
    ]
    measured = timing.measure("test", cells, 3, 0, least_seconds=0, clock=lambda: next(ticks))
    assert measured["a"].seconds.tolist() == [1.0, 1.0, 1.0]
    assert measured["b"].seconds.tolist() == [8 / 4]  # every sample takes one tick


def test_the_compilation_cache_is_off_inside_only():
    flag = "jax_enable_compilation_cache"
    before = jax.config.values[flag]
    with timing.no_compilation_cache():
        assert not jax.config.values[flag]
    assert jax.config.values[flag] == before


# --- what is asked for ---------------------------------------------------------------------------


def test_a_figure_knows_whether_it_is_met():
    at_most, at_least = section.Target(8, aim=4), section.Target(50, at_least=True)
    assert section.Figure("x", 8.0, at_most).is_met
    assert not section.Figure("x", 8.1, at_most).is_met
    assert section.Figure("x", 50.0, at_least).is_met
    assert not section.Figure("x", 49.0, at_least).is_met


def test_a_comparison_holds_each_cell_against_its_target():
    seconds = {"a": [1.0, 2.0], "a2": [1.0, 2.0], "b": [3.0, 6.0]}
    measured = {
        name: timing.Measured(np.array(own), 0.5, 40 if name == "b" else None)
        for name, own in seconds.items()
    }
    targets = {"b": section.Target(2)}
    found = section.comparison("test", "A test", measured, ["a"], "a2", targets, param_bytes=80)
    assert [(figure.name, figure.measured) for figure in found.figures] == [("test: b / a", 3.0)]
    assert not found.figures[0].is_met
    assert found.rows[0] == ["a", "1,500", "1", "", "0.50", "-"]
    assert found.rows[2] == ["b", "4,500", "3.00", "3.00-3.00", "0.50", "0.500"]
    assert all(len(row) == 1 + len(found.columns) for row in found.rows)
    assert found.noise == (1.0, 1.0, 1.0)
    assert list(found.bars) == ["a2", "b"]


# --- what the cells do ---------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("vmap", [lambda f: f, jax.vmap], ids=["one", "vmap"])
def test_idle_steps_keep_the_masks_and_updates_prune_more_each_time(vmap):
    params, grads = steps.kernels(0, 200, 2)
    if vmap is jax.vmap:
        params, grads = jax.tree.map(lambda x: jnp.stack([x, -x]), (params, grads))
    cells = {cell.name: cell for cell in steps._cells(params, grads, vmap)}
    assert len({cell.name for cell in cells.values()}) == 8 + 2 * len(steps.DYNAMIC)
    weights = sum(leaf.size for leaf in jax.tree.leaves(params))

    def kept(state):
        return sum(int(mask.sum()) for mask in jax.tree.leaves(jp.get_masks(state.opt_state)))

    def states(name, n):
        step, state = jax.jit(cells[name].step), cells[name].state()
        for _ in range(n):
            state = step(state, *cells[name].inputs)
            yield state

    assert [kept(state) for state in states("idle, global", 3)] == [weights // 10] * 3
    counts = [kept(state) for state in states("update, global", steps.UPDATES + 2)]
    assert counts[0] == weights and sorted(counts, reverse=True) == counts
    assert len(set(counts)) > 20
    assert counts[-2:] == [weights // 10] * 2


def test_masks_cost_a_byte_in_memory_and_a_bit_in_a_file():
    params = jax.eval_shape(lambda: steps.kernels(0, 1_000_000, 1)[0])
    sizes = memory._masks(params, seed=0)
    assert sizes["in memory"] == 1_000_000
    assert 125_000 <= sizes["in a file"] < 135_000


@pytest.mark.full
def test_the_networks_of_the_two_convolutions_are_the_same():
    ours, xlas = seeds.conv_nets()
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    variables = ours.init(jax.random.key(1), images)
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(xlas.init, jax.random.key(1), images)
    )
    outputs = [net.apply(variables, images) for net in (ours, xlas)]
    np.testing.assert_allclose(*outputs, rtol=1e-5, atol=1e-6)


# --- the recipe ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tiny run of everything."""
    out = tmp_path_factory.mktemp("runs") / "bench"
    bench.main([*TINY, "--out", str(out)])
    return out


@pytest.mark.full
def test_it_writes_everything(finished):
    files = ["config.yaml", "plots", "report.md", "summary.json"]
    assert sorted(path.name for path in finished.iterdir()) == files
    assert (finished / "plots" / "ratios.png").read_bytes().startswith(b"\x89PNG")
    report = (finished / "report.md").read_text()
    assert "| step: update, global / adam |" in report
    assert "| adam (A/A) |" in report
    assert f"python -m recipes.bench --config {finished / folder.CONFIG}" in report


@pytest.mark.full
def test_the_summary_has_every_number(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["recipe"] == "bench"
    assert (summary["weights"], summary["seeds"], summary["repeats"]) == (2000, 2, 2)
    assert set(summary["sections"]) == {
        *("step", "selection", "vmap", "compile_lenet", "masks", "memory"),
        "checkpoints",
        *("seeds", "seeds_conv", "barriers"),
        *("compact lenet 1", "compact lenet 256"),
        *("fast step 32", "fast step 128"),
        *(f"fast product {batch}" for batch in (1, 32, 128, 256)),
        *("fast share 16", "fast share 32"),
        "distill",
        *("calibration statistics", "calibration sparsegpt"),
    }
    assert {"backend", "device", "cpus", "jax", "jaxlib", "optax"} <= set(summary["environment"])
    update = summary["sections"]["step"]["cells"]["update, global"]
    assert update["rounds"] == 2
    assert update["ratio"]["adam"].keys() == {"median", "low", "high"}
    assert update["compile_seconds"] > 0 and update["temp_bytes"] is not None
    figures = {figure["name"]: figure for figure in summary["figures"]}
    assert figures["masks: bytes a weight in memory"]["met"]
    assert figures["step: update, global / adam"]["target"] == 8
    assert figures["selection: argsort / select, global"]["at_least"]
    assert figures["seeds_conv: 1 program / 2 runs"]["target"] == 1.2
    assert figures["checkpoints: bytes with masks / dense"]["target"] == 1.04
    assert figures["barriers: seconds of the matrix"]["target"] == 60
    cells = summary["sections"]["barriers"]["cells"]
    assert cells["matrix"]["rounds"] == 2 and cells["matrix, and compiled"]["rounds"] == 1
    assert cells["matrix"]["ratio"].keys() == {"1 x 11 passes"}  # a pair, two seeds


@pytest.mark.full
def test_a_run_is_not_overwritten_unasked(finished, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main([*TINY, "--out", str(finished)])
    assert stop.value.code == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--weights", "10"], "--weights must be in [100, "),
        (["--weights", "nan"], "--weights must be in"),
        (["--leaves", "0"], "--leaves must be at least 1"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--seeds", "1"], "--seeds, with pairs for barriers, must be at least 2, got 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--sample-ms", "-1"], "--sample-ms must be in"),
        (["--only", "step", "speed"], "unknown --only 'speed'; choose one of step, selection"),
        (["--models", "vgg"], "unknown --models 'vgg'"),
        (["--warp", "9"], "--warp"),
    ],
)
def test_bad_flags_are_one_line_and_exit_2(tmp_path, capsys, flags, said):
    out = tmp_path / "bench"
    with pytest.raises(SystemExit) as stop:
        bench.main([*flags, "--out", str(out)])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert said in error
    assert not out.exists()


def test_too_many_weights_for_the_memory_are_one_line(tmp_path, capsys, monkeypatch):
    def full(plan):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setitem(bench.BENCHMARKS, "step", full)
    with pytest.raises(SystemExit) as stop:
        bench.main(["--only", "step", "--out", str(tmp_path / "bench")])
    assert stop.value.code == 2
    assert "error: out of memory in 'step'; choose fewer --weights\n" in capsys.readouterr().err


@pytest.mark.full
def test_a_part_can_run_alone(tmp_path):
    out = tmp_path / "bench"
    bench.main([*TINY, "--only", "memory", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir()) == [
        folder.CONFIG,
        folder.REPORT,
        folder.SUMMARY,
    ]
    assert set(json.loads((out / folder.SUMMARY).read_text())["sections"]) == {"masks", "memory"}


@pytest.mark.full
def test_the_file_has_what_the_report_is_made_of(finished):
    report = (finished / folder.REPORT).read_text()
    assert report.count("\n## ") == 24  # what was asked for, and twenty-three tables
    assert folder.SUMMARY in report


@pytest.mark.full
def test_a_convolution_beside_the_forms_that_fast_chooses():
    plan = section.Plan(1, 1, 1, 2, 1, (), 1, 1, 0, 1e-4)
    name = "3 x 3, 16 to 16 channels, 32 x 32"
    cells = fast_images._convolution(plan, name, 1).numbers
    assert list(cells["cells"])[:2] == ["dense", "dense (A/A)"]
    assert len(cells["cells"]) == 2 + len(fast_images.PATTERNS)
