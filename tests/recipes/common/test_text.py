"""Text: the same on every machine, windows without gaps, bits by hand, samples that are causal."""

import hashlib
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recipes.common import text
from recipes.common.data import Split
from recipes.common.folder import RecipeError

FOLDER = os.environ.get("JAXPRUNE_DATA_DIR")
GOLDEN = {  # sha256 of the parts
    "train": "ddd380932bce6061",
    "validation": "e32571f456d956bb",
    "test": "b9fa245aeb694af2",
}


def test_names_are_the_same_everywhere():
    read = text.load("names")
    assert read.characters == "\n -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for part, golden in GOLDEN.items():
        content = read.decode(getattr(read, part))
        assert hashlib.sha256(content.encode()).hexdigest().startswith(golden)
    assert read.decode(read.train).startswith("SPACE\nEXCLAMATION MARK\nQUOTATION MARK\n")
    assert "LATIN CAPITAL LETTER OPEN O\n" in read.decode(read.validation)


def test_no_name_is_in_two_parts():
    parts = [set(part.splitlines()) for part in text.names()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 12_886


@pytest.mark.skipif(not FOLDER, reason="JAXPRUNE_DATA_DIR names no TFDS folder")
def test_tiny_shakespeare():
    read = text.load("tiny_shakespeare", Path(str(FOLDER)))
    assert [len(part) for part in read[:3]] == [1_003_854, 55_770, 55_770]
    assert len(read.characters) == 65
    assert read.decode(read.train[:14]) == "First Citizen:"


def test_a_file_is_parted_in_order(tmp_path):
    content = "".join(chr(0x100 + i % 300) for i in range(1000))  # more characters than a byte has
    file = tmp_path / "a.txt"
    file.write_text(content, encoding="utf-8")
    read = text.load("names", file=file)
    assert [len(part) for part in read[:3]] == [900, 50, 50]
    assert read.train.dtype == np.int32 and len(read.characters) == 300
    assert "".join(map(read.decode, read[:3])) == content
    np.testing.assert_array_equal(read.encode(content[:20]), read.train[:20])


def raised(call):
    with pytest.raises(RecipeError) as error:
        call()
    return str(error.value)


def test_clear_errors(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert "--dataset names needs none" in raised(lambda: text.load("tiny_shakespeare"))
    assert "has no 'tiny_shakespeare'" in raised(lambda: text.load("tiny_shakespeare", tmp_path))
    assert "choose one of names, tiny" in raised(lambda: text.load("novels"))
    assert "No such file" in raised(lambda: text.load("names", file=tmp_path / "none"))
    (tmp_path / "latin").write_bytes(b"caf\xe9" * 100)
    assert "as UTF-8" in raised(lambda: text.load("names", file=tmp_path / "latin"))
    assert "no character 'é'" in raised(lambda: text.load("names").encode("CAFé"))
    assert "--context 50 needs a text of 51" in raised(
        lambda: text.windows(np.zeros(50, np.uint8), 50, 1)
    )


def test_windows_and_the_tokens_after_them():
    seen, after = text.windows(np.arange(10, dtype=np.uint8), 4, 3)
    assert seen.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert after.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]


@pytest.mark.parametrize("examples", [4, 6, 7])
def test_bits_of_a_known_distribution(examples):
    """A model that gives token 0 the probability 1/2 and the others 1/4: 1 bit, and 2 bits."""
    apply = lambda v, tokens: jnp.broadcast_to(v["params"], (*tokens.shape, 3))
    tokens = np.zeros((examples, 5), np.uint8)
    tokens[0] = 1
    stack = jnp.log(jnp.array([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]]))
    bits = text.bits(apply, Split(tokens, tokens), batch_size=3)(stack)
    np.testing.assert_allclose(bits, [(2 + examples - 1) / examples, np.log2(3)], rtol=1e-6)


def test_samples_of_a_model_that_counts():
    """The next token is always one more than the last: also when the window has become full."""
    apply = lambda v, tokens: 50.0 * jax.nn.one_hot((tokens + 1) % 7, 7)
    start = jnp.array([[2, 3], [5, 6]])
    tokens = text.sampled(apply, {}, jax.random.key(0), start, 9, 4)
    np.testing.assert_array_equal(tokens, (start[:, 1:] + 1 + jnp.arange(9)[None]) % 7)


def test_samples_read_the_whole_window():
    """The next token is the sum of all that the model reads: padding is not among it."""
    apply = lambda v, tokens: 50.0 * jax.nn.one_hot(jnp.cumsum(tokens, 1) % 7, 7)
    tokens = text.sampled(apply, {}, jax.random.key(0), jnp.array([[1, 2]]), 5, 3)
    wanted = [1, 2]
    for _ in range(5):
        wanted.append(sum(wanted[-3:]) % 7)
    assert tokens.tolist() == [wanted[2:]]
