"""Iterative pruning: train, prune what is left, rewind or not, train again; phase after phase.

A phase is to `iterative` what a step is to `sparsify`: any mask transform says what each prunes,
and its schedules count phases.

    iterative(train, params, prune(magnitude, global_threshold, schedule(0.98, 10)), 10)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprune.base import Masks, MaskTransform, Params, check_fraction, copied, is_known
from jaxprune.masks import apply_masks
from jaxprune.selection.counting import n_true
from jaxprune.trees import check_like

# --- how much in each phase -----------------------------------------------------------------------


def rate(sparsity: Any, phases: int, start: Any = 0.0) -> Any:
    """The fraction, of the weights that are left, that each phase prunes to end at `sparsity`.

        r = 1 - ((1 - sparsity) / (1 - start))^(1 / phases)

    Args:
      sparsity: after the last phase, a fraction in [0, 1).
      phases: how many, at least 1.
      start: the sparsity before the first.

    Raises:
      ValueError: if these do not hold, or `sparsity` is below `start`, where they are known.

    >>> import jaxprune as jp
    >>> round(jp.tickets.rate(0.9, 3), 4)
    0.5358
    """
    _check_phases("tickets.rate", phases)
    for value in (sparsity, start):
        check_fraction(value)
    if is_known(sparsity) and is_known(start) and float(sparsity) < float(start):
        raise ValueError(
            f"tickets.rate: the sparsity {float(sparsity):g} is below {float(start):g}, where the "
            "first phase starts, and what is pruned stays pruned. Ask for more, or start from "
            "masks that keep more."
        )
    return 1 - ((1 - sparsity) / (1 - start)) ** (1 / phases)


def sparsity_after(rate: Any, phases: int) -> Any:
    """The sparsity after so many phases that each prune `rate` of what is left: 1 - (1 - rate)^n.

    Raises:
      ValueError: if the rate is outside (0, 1), where it is known, or there is no phase.

    >>> import jaxprune as jp
    >>> round(jp.tickets.sparsity_after(0.2, 5), 4)
    0.6723
    """
    _check_phases("sparsity_after", phases)
    if is_known(rate) and not 0 < float(rate) < 1:
        hint = f" For {float(rate):g} % write {float(rate) / 100:g}." if 1 < rate < 100 else ""
        raise ValueError(
            "the rate of a phase is the fraction that it prunes of the weights that are left, in "
            f"(0, 1); got {float(rate):g}.{hint}"
        )
    return 1 - (1 - rate) ** phases


def sparsities(sparsity: Any, phases: int, start: Any = 0.0) -> Any:
    """The sparsity after each phase, all of one `rate`: (phases,), the last is `sparsity`.

    Of Python floats a numpy array, float64; of what is traced a jax array.

    Raises:
      ValueError: as `rate`.

    >>> import jaxprune as jp
    >>> jp.tickets.sparsities(0.9, 3).round(4)
    array([0.5358, 0.7846, 0.9   ])
    """
    each = rate(sparsity, phases, start)
    xp: Any = np if isinstance(each, float) else jnp
    before_last = 1 - (1 - start) * (1 - each) ** xp.arange(1.0, phases)
    return xp.append(before_last, sparsity)


def schedule(sparsity: Any, phases: int, start: Any = 0.0) -> optax.Schedule:
    """`sparsities` as a schedule of the phase, counted from 0; after the last it stays.

    Raises:
      ValueError: as `rate`.

    >>> import jaxprune as jp
    >>> round(float(jp.tickets.schedule(0.9, 3)(1)), 4)
    0.7846
    """
    all_of_them = jnp.asarray(sparsities(sparsity, phases, start), jnp.float32)
    return lambda phase: all_of_them[jnp.clip(phase, 0, phases - 1)]


# --- the phases -----------------------------------------------------------------------------------


class Phase(NamedTuple):
    """Pruned, and about to train.

    Attributes:
      number: int32 scalar, which phase, from 0.
      params: what training starts from; exactly zero where a mask is False.
      state: the mask transform's, as after this prune.
      before: the params that were pruned, as the phase before left them.
      pruned: float32 scalar, the fraction, of the weights that were left, that this prune took.
    """

    number: jax.Array
    params: Params
    state: Any
    before: Params
    pruned: jax.Array

    @property
    def masks(self) -> Masks:
        """Those of the mask transform's state."""
        return self.state.masks


def next_phase(
    transform: MaskTransform,
    state: Any,
    params: Params,
    number: Any,
    rewind_to: Params | None = None,
) -> Phase:
    """Prunes trained `params`, and rewinds what is left: all of a phase but its training.

    Args:
      transform: what prunes; `number` is its step. Schedules are of phases.
      state: the transform's, from `transform.init(params)` or the phase before.
      params: as trained.
      number: int32 scalar, which phase, from 0; may be traced: all phases are one program.
      rewind_to: the params to go back to, biases and all, under the new masks, such as
        the params of step 500 of the first training; by default the weights stay as trained. They
        are copied: the training may donate what it starts from.
    """
    number = jnp.asarray(number, jnp.int32)
    new = transform.update(state, params, grads=None, step=number, opt_state=None)
    left, leaves = (_kept(masks) for masks in (state.masks, new.masks))
    # a copy: training may donate what it starts from, also where no mask made it anew
    start = copied(apply_masks(params if rewind_to is None else rewind_to, new.masks))
    return Phase(number, start, new, params, 1 - leaves / jnp.maximum(left, 1))


def iterative(
    train: Callable[[Phase], tuple[Params, Any]],
    params: Params,
    transform: MaskTransform,
    phases: int,
    rewind_to: Params | None = None,
) -> tuple[Params, Masks, Any]:
    """Prunes and trains again, `phases` times: one `lax.scan`, so that `train` compiles once.

        params, state  <-  trained, transform.init(trained)
        repeat:  state  <- transform.update(state, params, step=phase)
                 params <- train(masks * (rewind_to or params))

    With `rewind_to=early`, the weights at step k of the first training, it is iterative magnitude
    pruning with rewinding, and with the initial weights (k = 0) the original lottery ticket;
    `train` then goes on from step k, in the order of the data and in the schedule of its rates.
    Its authors prune 20 % of what is left in each phase: `sparsity_after(0.2, phases)` at the end.
    Without, the schedule that `train` uses makes it learning-rate rewinding (`lrr`), fine-tuning
    (`ft`) or a restart (`slr`, `clr`, `llr`, `allr`).

    Args:
      train: `phase -> (params, out)`: trains `phase.params` under `phase.masks`, with an optimizer
        that it makes anew, such as `sparsify(adam(1e-3), fixed(phase.masks))`: no optimizer's state
        survives a prune. `out` is any pytree: accuracies, or the params and masks themselves.
      params: trained, to be pruned first. Under `vmap`, one a replicate.
      transform: what each phase prunes, such as `prune(magnitude, global_threshold,
        schedule(0.98, phases))` or `sap()`. To start from masks, `chain(fixed(masks), ...)`.
      phases: how many, at least 1.
      rewind_to: as for `next_phase`.

    Returns:
      The params and masks of the last phase, and `out` of all phases, stacked (phases, ...).

    Raises:
      ValueError, TypeError: if there is no phase, `rewind_to` or what `train` returns is not like
        the params, or it returns no pair.

    References: Frankle and Carbin, 2019, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks; Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket
    Hypothesis; Renda et al., 2020, Comparing Rewinding and Fine-tuning in Neural Network Pruning.
    """
    _check_phases("iterative", phases)
    if not isinstance(transform, MaskTransform):
        raise TypeError(
            "iterative needs a mask transform, such as jp.prune(jp.magnitude, jp.global_threshold, "
            f"jp.tickets.schedule(0.98, {phases})); got {type(transform).__name__}."
        )
    if rewind_to is not None:
        check_like("iterative: rewind_to", rewind_to, params, dtypes=True)

    def phase(carry: tuple[Params, Any], number: jax.Array) -> tuple[tuple[Params, Any], Any]:
        now = next_phase(transform, carry[1], carry[0], number, rewind_to)
        result = train(now)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "iterative: train(phase) returns (params, out), out being anything to keep of "
                f"each phase, or None; got {type(result).__name__}."
            )
        check_like("iterative: what train returns", result[0], carry[0], dtypes=True)
        return (result[0], now.state), result[1]

    params = jax.tree.map(jnp.asarray, params)
    start = params, transform.init(params)
    (params, state), outs = jax.lax.scan(phase, start, jnp.arange(phases))
    return params, state.masks, outs


def _kept(masks: Masks) -> jax.Array:
    """How many weights masks keep, float32 scalar."""
    counts = [n_true(mask)[0].astype(jnp.float32) for mask in jax.tree.leaves(masks)]
    return jnp.stack(counts).sum()


def _check_phases(what: str, phases: Any) -> None:
    if isinstance(phases, bool) or not hasattr(phases, "__index__"):
        raise TypeError(f"{what}: phases is how many there are, an int; got {phases!r}.")
    if phases < 1:
        raise ValueError(f"{what}: needs at least one phase; got {phases}.")
