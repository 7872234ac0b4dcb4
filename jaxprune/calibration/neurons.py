"""Scores of neurons, by group, from the inputs of the matrices that read them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.base import Params, Scores, arguments
from jaxprune.calibration.obspa import Moments, damped
from jaxprune.coupling.structure import Structure
from jaxprune.structured.check import check_all
from jaxprune.structured.kept import Kept, masks
from jaxprune.trees import named_leaves


def obspa_scores(
    structure: Structure, params: Params, batches: Iterable[Any], damping: float = 0.01
) -> Scores:
    """What the outputs of its readers lose without a neuron, after the update of `obspa`.

        kept = pick(structure, obspa_scores(structure, params, batches), 0.5)
        params = obspa(structure, params, kept, batches)

    A matrix W (inputs, outputs) reads the neuron by its inputs Q:

        H = X'X / rows + damping * mean(diag(H)) I
        score = sum over matrices of tr(W[Q]' ((H^-1)[Q, Q])^-1 W[Q])

    It is the squared error of X W without the neuron, a row, where W[K] makes up for it. Each
    neuron is scored alone. A leaf that `obspa` does not change counts W[Q]' H[Q, Q] W[Q].

    Args:
      structure, params, batches, damping: as in `obspa`.

    Returns:
      {group: float32 (size,)}, for `pick`. Groups differ in scale: see `structured.normalized`.

    Raises:
      ValueError: as `obspa`, and for a group that no matrix reads.

    Reference: Wang et al., 2024, Structurally Prune Anything: Any Architecture, Any Framework, Any
    Time. That groups are ranked by the structured step of the optimal brain surgeon is our reading.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.array([[1., 2., 0.]]), 'b': jnp.array([[3.], [1.], [5.]])}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> scores = jp.calibration.obspa_scores(structure, params, [jnp.ones((4, 1))], 1e-6)
    >>> scores['a'].round(3)  # each of the first two makes up for the other; the last is always 0
    Array([0., 0., 0.], dtype=float32)
    """
    if not damping > 0:
        raise ValueError(f"obspa_scores: damping must be positive; got {damping}.")

    def loss(read: _Reader) -> jax.Array:
        h = read.moment
        if not read.updated:
            return _losses(read.weight, h, jnp.asarray(read.inputs))
        inverse = jnp.linalg.inv(damped(h, damping))
        return _losses_after_update(read.weight, inverse, jnp.asarray(read.inputs))

    return _summed("obspa_scores", structure, params, batches, loss)


def activation_norms(structure: Structure, params: Params, batches: Iterable[Any]) -> Scores:
    """The L2 norm of each neuron's activations over all rows, where matrices read them.

        kept = pick(structure, activation_norms(structure, params, batches), 0.5, uniform)

    It is what CFSP's fine score comes to. The paper multiplies the norms by the weights of a
    feed-forward layer, each column of which is divided by its sum; as the authors' code averages
    these, the weights give all neurons the same factor, and the norms decide the order within a
    layer. Give `per_layer` the sparsities of `block_sparsities` for CFSP's coarse part.

    Args:
      structure, params, batches: as in `obspa`.

    Returns:
      {group: float32 (size,)}, for `pick`; several matrices that read a neuron are summed.

    Raises:
      ValueError: as `obspa_scores`.

    Reference: Wang et al., 2024, CFSP: An Efficient Structured Pruning Framework for LLMs with
    Coarse-to-Fine Activation Information.

    >>> import jax.numpy as jnp, jaxprune as jp
    >>> params = {'a': jnp.array([[1., 2.]]), 'b': jnp.array([[3.], [1.]])}
    >>> structure = jp.analyze(lambda p, x: x @ p['a'] @ p['b'], params, jnp.ones((1, 1)))
    >>> jp.calibration.activation_norms(structure, params, [jnp.ones((4, 1))])['a']
    Array([2., 4.], dtype=float32)
    """
    squares = lambda read: jnp.diag(read.moment)[jnp.asarray(read.inputs)].sum(1) * read.rows
    found = _summed("activation_norms", structure, params, batches, squares)
    return {name: jnp.sqrt(total) for name, total in found.items()}


class _Reader(NamedTuple):
    """A matrix that reads the neurons of a group."""

    weight: jax.Array  # (inputs, outputs), float32
    moment: jax.Array  # (inputs, inputs): X'X / rows
    inputs: np.ndarray  # int (neurons, k): the inputs of each neuron
    neurons: np.ndarray  # int (neurons,): which neurons of the group
    rows: int
    updated: bool  # by `obspa`


def _summed(
    what: str, structure: Structure, params: Params, batches: Iterable[Any], score: Any
) -> Scores:
    """By group the sum of `score(reader)` (neurons,) over all that read it."""
    check_all(what, structure, params)
    groups = {name: group.size for name, group in structure.groups.items() if group.size > 1}
    # any pruned neuron will do: then all inputs of all groups are seen
    left = masks(structure, {name: np.arange(size) > 0 for name, size in groups.items()})
    run = Moments(what, params, dict(named_leaves(left)))
    for run.batch, inputs in enumerate(arguments(what, batches)):
        run.run(structure.fn, [inputs])
    scores = {name: jnp.zeros(group.size) for name, group in structure.groups.items()}
    for name, size in groups.items():
        readers = list(_readers(structure, run, name, size))
        if not readers:
            raise ValueError(
                f"{what}: no matrix reads the neurons of group '{name}', so nothing says what they "
                "are worth. Exclude the group with analyze(..., freeze=...)."
            )
        for reader in readers:
            scores[name] = scores[name].at[jnp.asarray(reader.neurons)].add(score(reader))
    return scores


def _readers(structure: Structure, run: Moments, name: str, size: int) -> Iterator[_Reader]:
    """The matrices that read a group, several for neurons with other numbers of inputs."""
    number = np.arange(1, size + 1)

    def of_leaves(kept: np.ndarray) -> dict[str, Any]:
        one = Kept(structure, {name: kept}, (), True)  # a group may be empty
        return dict(named_leaves(masks(structure, one)))

    ends = [of_leaves(number == 1), of_leaves(number == size)]
    # the number of each neuron in binary digits: a mask for each digit
    digits = [of_leaves((number >> i) % 2 == 1) for i in range(size.bit_length())]
    for leaf, product, stays, moment, rows in run.of.values():
        if stays.all() or ends[0][leaf.name] is None:
            continue

        def seen(mask: dict[str, Any]) -> np.ndarray:
            entries = leaf.get(mask[leaf.name].astype(jnp.float32))  # noqa: B023
            return np.any(np.asarray(product.forth(entries)), 2)  # noqa: B023

        reads = ~(seen(ends[0]) & seen(ends[1]))  # not the matrices that make the neurons
        numbers = np.sum([seen(digit).astype(int) << i for i, digit in enumerate(digits)], 0)
        matrices = product.forth(leaf.get(run.now[leaf.name])).astype(jnp.float32)
        for weight, h, inputs, of in zip(matrices, moment / rows, reads, numbers, strict=True):
            updated = leaf.name not in run.otherwise
            for neurons, inputs_of in _alike(np.where(inputs, of, 0)):
                yield _Reader(weight, h, inputs_of, neurons, rows, updated)


def _alike(numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(neurons, their inputs (neurons, k)) of the neurons with k inputs each, for each k.

    numbers: int (inputs,), of each input the number of its neuron from 1 on, or 0 for none.
    """
    by_size: dict[int, list[tuple[int, np.ndarray]]] = {}
    for number in np.unique(numbers[numbers > 0]):
        inputs = np.flatnonzero(numbers == number)
        by_size.setdefault(len(inputs), []).append((int(number) - 1, inputs))
    for rows in by_size.values():
        neurons, inputs_of = zip(*rows, strict=True)
        yield np.array(neurons), np.stack(inputs_of)


@jax.jit
def _losses(weight: jax.Array, h: jax.Array, inputs: jax.Array) -> jax.Array:
    """tr(W[Q]' H[Q, Q] W[Q]) for each row Q of inputs."""
    return jax.vmap(lambda q: jnp.sum(weight[q] * (h[q][:, q] @ weight[q])))(inputs)


@jax.jit
def _losses_after_update(weight: jax.Array, inverse: jax.Array, inputs: jax.Array) -> jax.Array:
    """tr(W[Q]' ((H^-1)[Q, Q])^-1 W[Q]) for each row Q of inputs."""
    one = lambda q: jnp.sum(weight[q] * jnp.linalg.solve(inverse[q][:, q], weight[q]))
    return jax.vmap(one)(inputs)
