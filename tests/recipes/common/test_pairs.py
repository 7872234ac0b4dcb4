"""Byte pairs: a tiny text by hand, runs of one letter, and what comes back."""

import numpy as np
import pytest

from recipes.common import pairs, text
from recipes.common.folder import RecipeError

LOW = "low low lower"  # words: low, _low, _lower


def test_a_tiny_text_by_hand():
    """The pair lo occurs 3 times, then low, then _low twice; er once, which is too rare."""
    characters = " elorw"
    made = pairs.learned(LOW, characters, 100)
    assert made.words == (*characters, "lo", "low", " low")
    assert made.merges == ((2, 3), (6, 5), (0, 7))
    assert made.encode("lower lolow").tolist() == [7, 1, 4, 0, 6, 7]
    assert pairs.learned(LOW, characters, 7).words[6:] == ("lo",)


@pytest.mark.parametrize(
    ("run", "wanted"), [("aaa", "2 0"), ("aaaa", "2 2"), ("aaabaa", "2 0 1 2")]
)
def test_runs_of_one_letter_merge_from_the_left(run, wanted):
    made = pairs.Pairs(("a", "b", "aa"), ((0, 0),))
    assert " ".join(map(str, made.encode(run))) == wanted


def test_a_text_comes_back_and_is_shorter():
    """Merges are those of the training text; any text of these characters can be encoded."""
    parts = text.names()
    by_character, by_pair = text.encoded(*parts), text.encoded(*parts, 60)
    assert len(by_pair.words) == 60 and by_pair.words[:39] == tuple(by_character.words)
    for part, tokens in zip(parts, by_pair[:3], strict=True):
        assert by_pair.decode(tokens) == part and by_pair.size(tokens) == len(part)
        assert len(tokens) < 0.8 * len(part) and tokens.max() == 59
    odd = "Z9-\n  QQ"
    assert by_pair.decode(by_pair.encode(odd)) == odd
    assert by_pair.encode("").tolist() == []


def test_bits_are_of_a_character():
    """Tokens of 1, 1 and 3 characters, all equally likely: log2(3) bits for each token."""
    lengths, labels = np.array([1, 1, 3]), np.array([[0, 2, 1, 2]])
    split = text.Split(np.zeros_like(labels), labels)
    apply = lambda variables, tokens: np.zeros((*tokens.shape, 3), np.float32)
    (bits,) = text.bits(apply, split, lengths=lengths)({"w": np.zeros((1, 1))})
    assert bits == pytest.approx(4 * np.log2(3) / 8)


def test_too_few_tokens_are_told():
    with pytest.raises(RecipeError, match="--vocabulary 39 leaves no token for a pair"):
        text.encoded(*text.names(), 39)
    with pytest.raises(RecipeError, match="no character 'é'"):
        text.encoded(*text.names(), 40).encode("É".lower())
