"""`recipes.language`: its bits and its samples are those of the saved models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes import language
from recipes.common import folder, text
from recipes.common.models import Decoder, decoder

pytestmark = pytest.mark.full


def test_bits_are_those_of_the_saved_models(finished):
    params, batch_stats, masks = finished.model()
    assert batch_stats == {} and all(np.all(mask) for mask in jax.tree.leaves(masks))
    module, tokens = Decoder(39, decoder.SIZES["tiny"]), text.load("names").test
    seen = len(tokens) // 16 * 16
    inputs, after = (tokens[i : i + seen].reshape(-1, 16).astype(int) for i in (0, 1))
    for seed in range(2):
        one = jax.tree.map(lambda x, i=seed: x[i], params)
        logits = jax.nn.log_softmax(module.apply({"params": one}, inputs))
        bits = -jnp.take_along_axis(logits, after[..., None], -1).mean() / np.log(2)
        assert finished.summary["test_bits"]["per_seed"][seed] == pytest.approx(
            float(bits), rel=1e-5
        )
    perplexity = finished.summary["test_perplexity"]["per_seed"]
    assert np.log2(perplexity) == pytest.approx(finished.summary["test_bits"]["per_seed"])


def test_a_line_for_each_call_and_bits_now_and_then(finished):
    assert [record["step"] for record in finished.records] == [4, 8, 12]
    last = finished.records[-1]
    assert last["validation_bits"] == finished.summary["validation_bits"]["per_seed"]
    assert last["validation_bits"][0] < np.log2(39) < 6  # of the uniform distribution
    assert (
        len(last["sample"]) == 20 and last["sample"] in (finished.out / "samples.txt").read_text()
    )


def test_samples_are_of_the_first_seed(finished):
    """The last sample along the way is the first at the end only if there is one sample."""
    config, samples = finished.config, finished.summary["samples"]
    params = jax.tree.map(lambda x: x[0], finished.model()[0])
    key = jax.random.fold_in(jax.random.key(config.seed), language.SAMPLE)
    apply = Decoder(39, decoder.SIZES["tiny"]).apply
    tokens = text.sampled(apply, params, key, jnp.zeros((3, 1), int), 20, 16, 0.8)
    assert samples == [text.load("names").decode(row) for row in tokens]


def test_weights_decay_and_norms_do_not():
    """With no gradient only decay moves a weight: by the rate, times a tenth of it."""
    tx = language.optimizer(0.5, 100)
    params = {"kernel": jnp.ones((2, 2)), "scale": jnp.ones(2)}
    zeros, state = jax.tree.map(jnp.zeros_like, params), tx.init(params)
    for _ in range(6):  # the rate is 0, 0.1, ..., 0.5
        updates, state = tx.update(zeros, state, params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["scale"], 0)


def test_training_that_diverges_says_so(tmp_path, capsys):
    short = "--steps 4 --log-every 4 --batch-size 4 --context 8"
    argv = [*short.split(), "--learning-rate", "1e30"]
    with pytest.raises(SystemExit) as stop:
        language.main([*argv, "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "networks have diverged at step 4; lower --learning-rate" in capsys.readouterr().err
    assert not (tmp_path / "run" / folder.SUMMARY).exists()
