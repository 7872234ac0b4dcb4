"""Words of fixed point: by hand, shorter where the histogram allows it, and clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp

BELL = jax.random.normal(jax.random.key(0), (2000, 1))
FEW = jnp.where(jnp.arange(200) % 2, 0.5, -1.0)[:, None]  # two values, both in 3 bits


def test_words_are_as_short_as_the_histogram_allows():
    learned = jp.reparam.fixed_point(16).init({"a": {"kernel": BELL}, "b": {"kernel": FEW}})
    words = lambda learned: {
        name: float(leaf["kernel"].item()) for name, leaf in learned.words.items()
    }
    assert words(learned) == {"a": 16, "b": 16}
    shorter = jax.jit(jp.reparam.push_down)(learned)
    assert words(shorter)["b"] == 3 and 6 <= words(shorter)["a"] <= 10
    used = jp.reparam.fixed_point().apply(shorter)
    np.testing.assert_array_equal(used["b"]["kernel"], FEW)
    assert len(np.unique(used["a"]["kernel"])) <= 2 ** words(shorter)["a"]
    assert words(jp.reparam.push_down(learned, spare=20)) == {"a": 16, "b": 16}
    coarse, fine = (words(jp.reparam.push_down(learned, t))["a"] for t in (0.3, 0.001))
    assert coarse < words(shorter)["a"] <= fine


def test_pruned_weights_and_empty_layers_take_no_part():
    kernel = jnp.concatenate([FEW, jnp.zeros((5000, 1))])
    learned = jp.reparam.fixed_point().init({"a": {"kernel": kernel}, "b": {"kernel": 0 * FEW}})
    shorter = jp.reparam.push_down(learned)
    assert [shorter.words[name]["kernel"].item() for name in "ab"] == [3, 2]
    used = jp.reparam.fixed_point().apply(shorter)
    np.testing.assert_array_equal(used["a"]["kernel"], kernel)
    assert not np.asarray(used["b"]["kernel"]).any()


def test_another_length_is_no_other_program():
    pair, traced = jp.reparam.fixed_point(8), []

    @jax.jit
    def used(learned):
        traced.append(None)
        return pair.apply(learned)["kernel"]

    learned = pair.init({"kernel": BELL})
    before, after = used(learned), used(jp.reparam.push_down(learned, 0.3))
    assert len(traced) == 1 and len(np.unique(after)) < len(np.unique(before))


def test_clear_errors():
    learned = jp.reparam.fixed_point().init({"kernel": BELL})
    for wrong, message in (
        (lambda: jp.reparam.fixed_point(17), "from 2 to 16; got 17"),
        (lambda: jp.reparam.push_down(learned, 0), "tolerance must be positive; got 0"),
        (lambda: jp.reparam.push_down(learned, bins=1), "bins is a whole number, at least 2"),
        (lambda: jp.reparam.push_down(learned, spare=-1), "spare at least 0; got 100 and -1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(TypeError, match="needs what"):
        jp.reparam.push_down({"kernel": BELL})
