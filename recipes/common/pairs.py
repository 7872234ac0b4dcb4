"""Byte-pair encoding: the most frequent pair of tokens becomes a token, again and again.

The first tokens are characters. Pairs lie within a word: a run of letters, or of other signs, with
the space before it. White space that is no such space is a word by itself.

Reference: Sennrich et al., 2016, Neural Machine Translation of Rare Words with Subword Units.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WORD = re.compile(r" ?\w+| ?[^\w\s]+|\s")
END = -1  # after each word


class Pairs(NamedTuple):
    """What a text taught.

    Attributes:
      words: the text of each token: first the characters, in the order of their codes.
      merges: (left, right) of each further token, in the order in which they were learned.
    """

    words: tuple[str, ...]
    merges: tuple[tuple[int, int], ...]

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text of these characters, int32; its words join to the text."""
        order: dict[str, int] = {}
        places = [order.setdefault(word, len(order)) for word in WORD.findall(text)]
        tokens = spelled(list(order), self.words[: len(self.words) - len(self.merges)])
        for i, pair in enumerate(self.merges):
            tokens = merged(tokens, pair, len(self.words) - len(self.merges) + i)[0]
        of_word = np.split(tokens, np.flatnonzero(tokens == END) + 1)
        return np.concatenate([np.zeros(0, np.int32), *(of_word[i][:-1] for i in places)])


def learned(text: str, characters: Sequence[str], vocabulary: int) -> Pairs:
    """The pairs of a text, until there are `vocabulary` tokens, or no pair that occurs twice.

    Among pairs that occur equally often the one of earlier tokens is first.
    """
    counts = Counter(WORD.findall(text))
    tokens = spelled(list(counts), characters)
    often = np.repeat([*counts.values()], [len(word) + 1 for word in counts]).astype(np.float64)
    words, merges = list(characters), list[tuple[int, int]]()
    while len(words) < vocabulary:
        left, right = tokens[:-1], tokens[1:]
        inside = (left != END) & (right != END)
        codes = left[inside] * len(words) + right[inside]
        found = np.bincount(codes, often[:-1][inside]) if len(codes) else np.zeros(1)
        best = int(np.argmax(found))
        if found[best] < 2:
            break
        pair = divmod(best, len(words))
        tokens, kept = merged(tokens, pair, len(words))
        often = often[kept]
        words.append(words[pair[0]] + words[pair[1]])
        merges.append(pair)
    return Pairs(tuple(words), tuple(merges))


def spelled(words: Sequence[str], characters: Sequence[str]) -> np.ndarray:
    """The characters of words as tokens, with `END` after each word."""
    places = {character: i for i, character in enumerate(characters)}
    return np.array([i for word in words for i in (*map(places.__getitem__, word), END)], np.int32)


def merged(tokens: np.ndarray, pair: tuple[int, int], new: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with a new one for each such pair, from left to right; and the places that stay."""
    at = np.flatnonzero((tokens[:-1] == pair[0]) & (tokens[1:] == pair[1]))
    if pair[0] == pair[1]:  # of a run a a a, every second pair
        begins = np.concatenate([[True], np.diff(at) > 1])[: len(at)]
        first = at[begins][np.cumsum(begins) - 1]
        at = at[(at - first) % 2 == 0]
    tokens = tokens.copy()
    tokens[at] = new
    kept = np.ones(len(tokens), bool)
    kept[at + 1] = False
    return tokens[kept], kept
