"""Iterative pruning: train, prune, rewind or not, train again; phase after phase.

A phase is to `iterative` what a step is to `sparsify`: any mask transform prunes in each phase, and
its schedules count phases.

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
    """The fraction of the remaining weights that each phase prunes, to end at `sparsity`.

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
        check_fraction(value, "No number of weights has a rate: the params are not known here.")
    if is_known(sparsity) and is_known(start) and float(sparsity) < float(start):
        raise ValueError(
            f"tickets.rate: the sparsity {float(sparsity):g} is below {float(start):g}, where the "
            "first phase starts, and what is pruned stays pruned. Give a higher sparsity, or start "
            "from masks that keep more."
        )
    return 1 - ((1 - sparsity) / (1 - start)) ** (1 / phases)


def sparsity_after(rate: Any, phases: int) -> Any:
    """The sparsity after n phases that each prune `rate` of what is left: 1 - (1 - rate)^n.

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
            "the rate of a phase is the fraction of the remaining weights that it prunes, in "
            f"(0, 1); got {float(rate):g}.{hint}"
        )
    return 1 - (1 - rate) ** phases


def sparsities(sparsity: Any, phases: int, start: Any = 0.0) -> Any:
    """The sparsity after each phase, all of one `rate`: (phases,), the last is `sparsity`.

    For Python floats a numpy array, float64; for traced values a jax array.

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
    """`sparsities` as a schedule of the phase, counted from 0; constant after the last.

    Raises:
      ValueError: as `rate`.

    >>> import jaxprune as jp
    >>> round(float(jp.tickets.schedule(0.9, 3)(1)), 4)
    0.7846
    """
    values = jnp.asarray(sparsities(sparsity, phases, start), jnp.float32)
    return lambda phase: values[jnp.clip(phase, 0, phases - 1)]


# --- the phases -----------------------------------------------------------------------------------


class Phase(NamedTuple):
    """The network of a phase, pruned and not yet trained.

    Attributes:
      number: int32 scalar, which phase, from 0.
      params: where training starts; exactly zero where a mask is False.
      state: of the mask transform, after this prune.
      before: the trained params of the phase before, which were pruned.
      pruned: float32 scalar, the fraction of the remaining weights that this prune took.
    """

    number: jax.Array
    params: Params
    state: Any
    before: Params
    pruned: jax.Array

    @property
    def masks(self) -> Masks:
        """The masks in `state`."""
        return self.state.masks


def next_phase(
    transform: MaskTransform,
    state: Any,
    params: Params,
    number: Any,
    rewind_to: Params | None = None,
) -> Phase:
    """Prunes trained `params`, and rewinds the rest: a phase without its training.

    Args:
      transform: prunes; `number` is its step, so that its schedules count phases. It is also given
        `rewind_to=`, for `ap`.
      state: of the transform, from `transform.init(params)` or the phase before.
      params: as trained.
      number: int32 scalar, which phase, from 0; may be traced: all phases are one program.
      rewind_to: params to go back to, biases too, under the new masks, such as those of step 500
        of the first training; by default the weights stay as trained. They are copied, since
        training may donate them.
    """
    number = jnp.asarray(number, jnp.int32)
    new = transform.update(
        state, params, grads=None, step=number, opt_state=None, rewind_to=rewind_to
    )
    before, after = (_n_kept(masks) for masks in (state.masks, new.masks))
    # a copy, since training may donate it
    start = copied(apply_masks(params if rewind_to is None else rewind_to, new.masks))
    return Phase(number, start, new, params, 1 - after / jnp.maximum(before, 1))


def iterative(
    train: Callable[[Phase], tuple[Params, Any]],
    params: Params,
    transform: MaskTransform,
    phases: int,
    rewind_to: Params | None = None,
) -> tuple[Params, Masks, Any]:
    """Prunes and trains, `phases` times: one `lax.scan`, so that `train` compiles once.

        params, state  <-  trained, transform.init(trained)
        repeat:  state  <- transform.update(state, params, step=phase)
                 params <- train(masks * (rewind_to or params))

    With `rewind_to=early`, the weights at step k of the first training, it is iterative magnitude
    pruning with rewinding; with the initial weights (k = 0) it is the original lottery ticket.
    `train` then starts at step k of the order of the data and of the learning rates. The authors
    prune 20 % of the remaining weights in each phase: `sparsity_after(0.2, phases)` at the end.
    Without `rewind_to` the schedule in `train` decides: learning-rate rewinding (`lrr`),
    fine-tuning (`ft`) or a restart (`slr`, `clr`, `llr`, `allr`).

    Tickets from distilled data have another `train`, which sees the distilled images, and
    `rewind_to` the initial weights. Chained masks are two calls: the masks of four phases on
    distilled images begin the phases on real ones.

        trained = train_distilled(...)
        _, stable, _ = iterative(distilled, trained, prune(...), 4, rewind_to=initial)
        further = prune(magnitude, global_threshold, schedule(0.95, 10, start=0.59))
        iterative(real, train_real(stable), chain(fixed(stable), further), 10, rewind_to=initial)

    Args:
      train: `phase -> (params, out)`: trains `phase.params` under `phase.masks` with a new
        optimizer, such as `sparsify(adam(1e-3), fixed(phase.masks))`: no optimizer state survives
        a prune. `out` is any pytree: accuracies, or the params and masks themselves.
      params: trained; pruned first. Under `vmap`, one a replicate.
      transform: prunes in each phase, such as `prune(magnitude, global_threshold,
        schedule(0.98, phases))` or `sap()`. To start from masks, `chain(fixed(masks), ...)`.
      phases: how many, at least 1.
      rewind_to: as for `next_phase`.

    Returns:
      The params and masks of the last phase, and `out` of all phases, stacked (phases, ...).

    Raises:
      ValueError, TypeError: if there is no phase, `rewind_to` or the result of `train` is not like
        the params, or `train` returns no pair.

    References: Frankle and Carbin, 2019, The Lottery Ticket Hypothesis: Finding Sparse, Trainable
    Neural Networks; Frankle et al., 2020, Linear Mode Connectivity and the Lottery Ticket
    Hypothesis; Renda et al., 2020, Comparing Rewinding and Fine-tuning in Neural Network Pruning;
    McDermott and Cummings, 2023, Distilled Pruning: Using Synthetic Data to Win the Lottery;
    McDermott and Parhi, 2025, Finding Stable Subnetworks at Initialization with Dataset
    Distillation.
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
                "iterative: train(phase) returns (params, out), where out is any result of the "
                f"phase, or None; got {type(result).__name__}."
            )
        check_like("iterative: what train returns", result[0], carry[0], dtypes=True)
        return (result[0], now.state), result[1]

    params = jax.tree.map(jnp.asarray, params)
    start = params, transform.init(params)
    (params, state), outs = jax.lax.scan(phase, start, jnp.arange(phases))
    return params, state.masks, outs


def _n_kept(masks: Masks) -> jax.Array:
    """How many weights masks keep, float32 scalar."""
    counts = [n_true(mask)[0].astype(jnp.float32) for mask in jax.tree.leaves(masks)]
    return jnp.stack(counts).sum()


def _check_phases(what: str, phases: Any) -> None:
    if isinstance(phases, bool) or not hasattr(phases, "__index__"):
        raise TypeError(f"{what}: phases is how many there are, an int; got {phases!r}.")
    if phases < 1:
        raise ValueError(f"{what}: needs at least one phase; got {phases}.")
