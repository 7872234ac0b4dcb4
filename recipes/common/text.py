"""Text as tokens: data sets, windows, cross-entropy in bits a character, samples of a model.

`names` needs no files: it is the names of the characters of Unicode 3.2, in the order of their
codes, which Python's standard library has. Names never change, and Python has this version of the
database beside its newest (`unicodedata.ucd_3_2_0`), so the text is the same to the byte in every
version of Python.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recipes.common import data, pairs
from recipes.common.data import Dataset, Split
from recipes.common.folder import RecipeError, reason
from recipes.common.pairs import Pairs

DATASETS = ("names", "tiny_shakespeare")
HELD = 0.05  # of the text, to validate on; as much to test on
BLOCK = 32  # names that stay together
OVERLAP = 8  # a window of training text begins every context / 8 tokens
NUMBERED = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE")  # made from codes


class Text(NamedTuple):
    """Tokens (n,) of three parts, uint8 or int32, and the characters that they are made of."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    characters: str
    pairs: Pairs | None = None  # how characters make tokens; None where each is a token

    @property
    def words(self) -> Sequence[str]:
        """The text of each token."""
        return self.pairs.words if self.pairs else self.characters

    @property
    def lengths(self) -> np.ndarray:
        """The number of characters of each token."""
        return np.array([len(word) for word in self.words])

    def size(self, tokens: np.ndarray) -> int:
        """The number of characters of tokens (n,)."""
        return int(self.lengths[tokens].sum())

    def decode(self, tokens: Any) -> str:
        """The text of tokens (n,)."""
        words = self.words
        return "".join(words[i] for i in np.asarray(tokens))

    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text; raises `RecipeError` for a character that is not in the data."""
        places = {character: i for i, character in enumerate(self.characters)}
        if lost := sorted(set(text) - set(places)):
            raise RecipeError(f"the data have no character {lost[0]!r}, so no model can read it")
        if self.pairs:
            return self.pairs.encode(text)
        return np.array([places[character] for character in text], self.train.dtype)


def load(
    name: str, data_dir: Path | None = None, file: Path | None = None, vocabulary: int = 0
) -> Text:
    """The data set called `name`, or the text of a file; by characters, or `vocabulary` tokens.

    `data_dir` is a TFDS folder (default: the environment variable TFDS_DATA_DIR). Raises
    `RecipeError` for an unknown name and for a folder or a file that can't be read.
    """
    if file is not None:
        return encoded(*parted(_read(file)), vocabulary)
    if name not in DATASETS:
        raise RecipeError(f"unknown dataset '{name}'; choose one of {', '.join(DATASETS)}")
    return encoded(*(names() if name == "names" else _tfds(name, data_dir)), vocabulary)


def encoded(train: str, validation: str, test: str, vocabulary: int = 0) -> Text:
    """The parts by characters, all characters of the three in the order of their codes.

    With a vocabulary by so many tokens: the characters, and pairs that the training part teaches.
    """
    characters = sorted(set(train) | set(validation) | set(test))
    if vocabulary:
        if vocabulary <= len(characters):
            raise RecipeError(
                f"--vocabulary {vocabulary} leaves no token for a pair: the text has "
                f"{len(characters)} characters"
            )
        by_pair = pairs.learned(train, characters, vocabulary)
        a, b, c = (by_pair.encode(part) for part in (train, validation, test))
        return Text(a, b, c, "".join(characters), by_pair)
    codes = np.array([ord(character) for character in characters])
    dtype = np.uint8 if len(codes) <= 256 else np.int32

    def tokens(part: str) -> np.ndarray:
        points = np.frombuffer(part.encode("utf-32-le"), np.uint32)
        return np.searchsorted(codes, points).astype(dtype)

    return Text(tokens(train), tokens(validation), tokens(test), "".join(characters))


@lru_cache
def names() -> tuple[str, str, str]:
    """Three parts of the names of Unicode 3.2, one a line: blocks of 32, by a hash of the block."""
    known = unicodedata.ucd_3_2_0
    every = (known.name(chr(code), "") for code in range(sys.maxunicode + 1))
    lines = [name for name in every if name and not name.startswith(NUMBERED)]
    blocks = ["\n".join(lines[i : i + BLOCK]) + "\n" for i in range(0, len(lines), BLOCK)]
    by_hash = sorted(blocks, key=lambda block: hashlib.sha256(block.encode()).digest())
    held = round(HELD * len(blocks))
    test, validation = set(by_hash[:held]), set(by_hash[held : 2 * held])
    train = set(blocks) - test - validation
    of = lambda part: "".join(block for block in blocks if block in part)
    return of(train), of(validation), of(test)


def parted(text: str) -> tuple[str, str, str]:
    """The first 90 % to train on, then 5 % to validate on, then 5 % to test on."""
    held = round(HELD * len(text))
    ends = len(text) - 2 * held, len(text) - held
    return text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read --text '{file}' as UTF-8: {reason(error)}") from error


def _tfds(name: str, data_dir: Path | None) -> tuple[str, str, str]:
    """The three parts, read without tensorflow."""
    folder = data.tfds_folder(name, data_dir, "names")
    import tensorflow_datasets as tfds

    def part(split: str) -> str:
        source = tfds.data_source(name, split=split, data_dir=folder, download=False)
        return "".join(example["text"].decode() for example in source)

    try:
        return part("train"), part("validation"), part("test")
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise RecipeError(f"cannot read '{name}' in '{folder}': {first_line}") from error


# --- windows --------------------------------------------------------------------------------------


def windows(tokens: np.ndarray, context: int, stride: int) -> Split:
    """Windows of `context` tokens, one every `stride`: each token (n, t), and the next (n, t).

    Raises `RecipeError` for a text that is shorter than one window.
    """
    if len(tokens) <= context:
        raise RecipeError(
            f"--context {context} needs a text of {context + 1:,} tokens in each part; one has "
            f"{len(tokens):,}"
        )
    starts = np.arange(0, len(tokens) - context, stride)
    every = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)[starts]
    return Split(every[:, :-1].copy(), every[:, 1:].copy())


def dataset(
    name: str, data_dir: Path | None, context: int, train_examples: int | None = None
) -> Dataset:
    """Windows of characters (n, t), labeled by the character after each (n, t), as a data set.

    Windows of training text overlap, and begin every `context` / 8 characters. `train_examples`
    takes the first ones only.
    """
    read = load(name, data_dir)
    parts = ((read.train, max(1, context // OVERLAP)), (read.test, context))
    train, test = (
        Split(seen, after.astype(np.int32))
        for seen, after in (windows(tokens, context, stride) for tokens, stride in parts)
    )
    train = Split(*(x[:train_examples] for x in train))
    return Dataset(train, test, len(read.words), np.zeros(1), np.ones(1))


def cross_entropy(logits: jax.Array, tokens: Any) -> jax.Array:
    """The mean cross-entropy of tokens (n, t) in nats, by logits (n, t, vocabulary)."""
    targets = tokens.astype(jnp.int32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


Bits = Callable[[Any], np.ndarray]  # the params of a stack -> (lanes,)


def bits(
    apply: Callable[..., Any],
    split: Split,
    batch_size: int = 64,
    lengths: np.ndarray | None = None,
) -> Bits:
    """A function from the params of a stack to bits a character (lanes,), over all windows.

    The sum of the cross-entropy over the number of characters, and over the logarithm of 2. A
    window sees nothing before its first token. Windows that fill no batch are a batch of their own.

    Args:
      lengths: characters of each token; None where a token is a character.
    """
    characters = split.labels.size if lengths is None else int(lengths[split.labels].sum())
    fill = len(split.labels) - len(split.labels) % batch_size
    whole, rest = (Split(*(x[rows] for x in split)) for rows in (slice(fill), slice(fill, None)))
    batches = jax.device_put(
        Split(*(x.reshape(-1, batch_size, x.shape[-1]) for x in whole)),
    )

    @jax.jit
    def total(stack: Any, batches: Split, rest: Split) -> jax.Array:
        def of(stack: Any, batch: Split) -> jax.Array:
            one = lambda params: cross_entropy(
                apply({"params": params}, batch.images), batch.labels
            )
            return len(batch.labels) * jax.vmap(one)(stack)

        sums = jax.lax.map(lambda batch: of(stack, batch), batches).sum(0)
        return sums + of(stack, rest) if len(rest.labels) else sums

    tokens = split.labels.shape[1]
    nats = lambda stack: np.asarray(total(stack, batches, rest)) * tokens / characters
    return lambda stack: nats(stack) / np.log(2)


# --- samples --------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=(0, 4, 5))
def sampled(
    apply: Callable[..., Any],
    params: Any,
    key: jax.Array,
    start: jax.Array,
    length: int,
    context: int,
    temperature: float = 1.0,
) -> jax.Array:
    """`length` tokens (n, length) that a model writes after `start` (n, t), t at most `context`.

    Each token is drawn by the softmax of logits / temperature. The model reads the last `context`
    tokens.
    """
    t = start.shape[1]
    read = jnp.pad(start.astype(jnp.int32), ((0, 0), (0, context - t)))

    def one(carry: tuple[jax.Array, jax.Array], key: jax.Array) -> Any:
        read, t = carry
        logits = apply({"params": params}, read)
        last = jax.lax.dynamic_index_in_dim(logits, t - 1, axis=1, keepdims=False)
        token = jax.random.categorical(key, last / temperature)
        full = t == context
        read = jnp.where(full, jnp.roll(read, -1, axis=1), read)
        place = jnp.where(full, context - 1, t)
        return (read.at[:, place].set(token), jnp.minimum(t + 1, context)), token

    return jax.lax.scan(one, (read, jnp.asarray(t)), jax.random.split(key, length))[1].T
