"""The compiled decoder: what masks add on eight devices, and how HLO is read."""

import jax
import pytest
import yaml

import jaxprune as jp
from recipes import scale
from recipes.common import folder
from recipes.sharded import collectives, compiled, decoder, layout
from recipes.sharded.collectives import Moved
from tests.recipes.running import exit_code

TINY = decoder.Sizes(layers=3, width=64, heads=4, hidden=128, words=256)
FLAGS = [f"--{name}={size}" for name, size in TINY._asdict().items()]


@pytest.fixture(scope="module")
def found():
    return compiled.compile_all(TINY, devices=8, tokens=32, sparsity=0.5, every=10)


@pytest.fixture(scope="module")
def calibrated():
    return compiled.compile_calibration(TINY, devices=8, tokens=32)


@pytest.mark.full
def test_masks_add_their_bytes_and_no_communication(found):
    dense, sparse = found["dense"], found["sparse"]
    assert sparse.always == dense.always and not dense.in_branches
    assert sum(m.calls for m in dense.always.values()) > 3 * TINY.layers  # loops count
    params = decoder.shapes(TINY)
    prunable = sum(x.size for x in jax.tree.leaves(jp.kernels(params)))
    added = sparse.arguments - dense.arguments
    assert 0 <= added - prunable // 8 <= 16  # a byte a weight; and two counts of steps
    assert sparse.temporary <= 1.05 * dense.temporary


@pytest.mark.full
def test_an_update_of_the_masks_moves_counts_and_copies_nothing(found):
    update, in_step = found["update"], found["sparse"].in_branches
    assert update.always == in_step  # of a pass
    # 8 kernels, three thresholds, two axes: an int32 of each device, of each layer where there are
    # several, on the first, and then of all
    assert set(in_step) == {"all-gather"} and in_step["all-gather"].calls == 8 * 3 * 2
    assert in_step["all-gather"].bytes <= (7 * TINY.layers + 1) * 3 * 4 * (4 + 8)
    assert update.temporary < update.arguments / 4


@pytest.mark.full
def test_calibration_gathers_no_more_weights_than_a_forward_pass(calibrated):
    forward, statistics, in_order = calibrated.values()
    gathered = lambda own: own.always["all-gather"].bytes
    assert gathered(statistics) <= 1.01 * gathered(forward)
    assert gathered(in_order) <= 1.01 * gathered(forward)
    assert statistics.arguments <= in_order.arguments == forward.arguments


def test_llama_7b_has_its_size():
    params = decoder.shapes(decoder.Sizes())
    assert sum(x.size for x in jax.tree.leaves(params)) == 6_738_415_616
    named = layout.by_name(jp.kernels(params))
    assert len(named) == 7 * 32 + 1 and all(name.endswith("kernel") for name in named)


@pytest.mark.full
def test_a_run(found, calibrated, monkeypatch, tmp_path, capsys):
    of_part = {"training": found, "calibration": calibrated}
    monkeypatch.setattr(scale, "compile_elsewhere", lambda _, part, __: of_part[part])
    out = tmp_path / "run"
    scale.main([*FLAGS, "--devices", "8", "--tokens", "32", "--out", str(out)])
    assert "Calibration, 8 devices, 4 x 2 of data and model" in capsys.readouterr().out
    summary = yaml.safe_load((out / folder.SUMMARY).read_text())
    assert compiled.from_dict(summary["devices"]["8"]["dense"]) == found["dense"]
    assert "| its mask update, a pass |" in (out / folder.REPORT).read_text()
    assert "| prune_in_order, Wanda 2:4 |" in (out / folder.REPORT).read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hidden", "11007"], "'layers/down/kernel' has shape (32, 11007, 4096), and axis 1"),
        (["--heads", "6"], "--width 4096 must be an even number of features for each of 6 heads"),
        (["--width", "384", "--heads", "12"], "--heads 12 can't be split over the 8 devices"),
        (["--devices", "0"], "--devices must be at least 1, got 0"),
    ],
)
def test_bad_input(flags, message, tmp_path, capsys):
    assert exit_code(scale, *flags, "--out", str(tmp_path / "run")) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_collectives_are_read_with_their_loops_and_branches():
    hlo = """
%body (p: f32[4]) -> f32[4] {
  %a = (bf16[2,8]{1,0}, f32[]) all-reduce-start(%p, %q), to_apply=%add
  %b = bf16[2,8]{1,0} all-reduce-done(%a)
}
%update (p: f32[4]) -> f32[4] {
  ROOT %c = s32[8]{0} all-gather(%p), dimensions={0}
}
%rest (p: f32[4]) -> f32[4] {
  ROOT %c = f32[4]{0} copy(%p)
}
ENTRY %main (p: f32[4]) -> f32[4] {
  %w = f32[4] while(%p), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %d = f32[4] conditional(%i, %p, %p), branch_computations={%rest, %update}
  ROOT %e = pred[3]{0} collective-permute(%d), source_target_pairs={{0,1}}
}
"""
    program = collectives.read(hlo)
    assert program.always == {
        "all-reduce": Moved(5, 5 * (2 * 8 * 2 + 4)),
        "collective-permute": Moved(1, 3),
    }
    assert program.in_branches == {"all-gather": Moved(1, 32)}
    assert collectives.total(program.always) == Moved(6, 183)
