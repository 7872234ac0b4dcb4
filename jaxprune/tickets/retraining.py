"""Learning rates of retraining: the schedule after each prune.

Every function here returns an optax schedule of the steps 0, 1, ... of the retraining, for a new
optimizer. `ft`, `lrr`, `slr` and `clr` read the schedule of the original training; `llr` and `allr`
read its highest rate only. Rates and lengths may be traced: children of a soup with different rates
are lanes of one program.

Reference: Zimmer et al., 2023, How I Learned to Stop Worrying and Love Retraining.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxprune.base import Params, is_known

WARMUP = 0.1  # of the steps


def ft(schedule: optax.Schedule, steps: int) -> optax.Schedule:
    """Fine-tuning: the lowest rate of the original training, constant; its warm-up is left out.

    Args:
      schedule: of the original training.
      steps: its length.

    Raises:
      ValueError: if that rate is zero, as after a linear decay: nothing would be learned.

    Reference: Han et al., 2015, Learning both Weights and Connections for Efficient Neural
    Networks.

    >>> import optax, jaxprune as jp
    >>> float(jp.tickets.ft(optax.piecewise_constant_schedule(1.0, {60: 0.5, 80: 0.5}), 100)(3))
    0.25
    """
    _, lowest = _extremes(_rates(schedule, _steps("ft", steps)))
    if is_known(lowest) and not lowest > 0:
        raise ValueError(
            f"ft: the lowest rate of the original training is {lowest:g}: nothing would be "
            "learned. Use llr, or another schedule of the original training."
        )
    return optax.constant_schedule(lowest)


def lrr(schedule: optax.Schedule, steps: int, retrain_steps: int) -> optax.Schedule:
    """Learning-rate rewinding: the last `retrain_steps` rates of the original training again.

    Reference: Renda et al., 2020, Comparing Rewinding and Fine-tuning in Neural Network Pruning.

    Raises:
      ValueError: if the original training was shorter.

    >>> import optax, jaxprune as jp
    >>> schedule = jp.tickets.lrr(optax.linear_schedule(1.0, 0.0, 100), steps=100, retrain_steps=40)
    >>> round(float(schedule(0)), 4)
    0.4
    """
    _steps("lrr", steps)
    if _steps("lrr", retrain_steps) > steps:
        raise ValueError(
            f"lrr: can't replay the last {retrain_steps} of {steps} rates. Retrain for at most "
            f"{steps} steps, or use slr, clr or llr."
        )
    return lambda count: schedule(jnp.clip(count, 0, retrain_steps - 1) + steps - retrain_steps)


def slr(
    schedule: optax.Schedule, steps: int, retrain_steps: Any, warmup: float = WARMUP
) -> optax.Schedule:
    """Scaled learning-rate restarting: the original schedule in `retrain_steps` steps, warmed up.

    The warm-up of the original schedule is replaced by its highest rate.

    Args:
      schedule: of the original training.
      steps: its length.
      retrain_steps: the length of the retraining.
      warmup: the fraction of the retraining in which the rate rises from 0, as half a cosine.

    Reference: Le and Hua, 2021, Network Pruning That Matters: A Case Study on Retraining Variants.
    """
    rates = _rates(schedule, _steps("slr", steps))
    peak, _ = _extremes(rates)
    rates = jnp.where(jnp.arange(steps) < jnp.argmax(rates), peak, rates)

    def scaled(progress: jax.Array) -> jax.Array:
        step = jnp.floor(progress * steps * (1 + 1e-6))  # 0.29 * 100 is 28.999998 in float32
        return rates[jnp.clip(step, 0, steps - 1).astype(jnp.int32)]

    return _warmed_up("slr", peak, scaled, retrain_steps, warmup)


def clr(
    schedule: optax.Schedule, steps: int, retrain_steps: Any, warmup: float = WARMUP
) -> optax.Schedule:
    """Cyclic learning-rate restarting: half a cosine from the highest rate to the lowest.

    Both are rates of the original training; its warm-up does not count for the lowest.

    Args:
      schedule: of the original training.
      steps: its length.
      retrain_steps: the length of the retraining.
      warmup: the fraction of the retraining in which the rate rises from 0, as half a cosine.

    Reference: Le and Hua, 2021, Network Pruning That Matters: A Case Study on Retraining Variants.

    >>> import optax, jaxprune as jp
    >>> restart = jp.tickets.clr(optax.piecewise_constant_schedule(0.1, {60: 0.2}), 100, 50)
    >>> [round(float(restart(step)), 4) for step in (0, 5, 50)]
    [0.0, 0.1, 0.02]
    """
    peak, lowest = _extremes(_rates(schedule, _steps("clr", steps)))

    def cosine(progress: jax.Array) -> jax.Array:
        return lowest + (peak - lowest) * 0.5 * (1 + jnp.cos(jnp.pi * progress))

    return _warmed_up("clr", peak, cosine, retrain_steps, warmup)


def llr(peak: Any, retrain_steps: Any, warmup: float = WARMUP) -> optax.Schedule:
    """Linear learning-rate restarting: from the highest rate of the original training to zero.

    Args:
      peak: the highest rate of the original training.
      retrain_steps: the length of the retraining.
      warmup: the fraction of it in which the rate rises from 0, as half a cosine.

    Reference: Zimmer et al., 2023, How I Learned to Stop Worrying and Love Retraining.

    >>> import jaxprune as jp
    >>> [round(float(jp.tickets.llr(0.1, 100)(step)), 4) for step in (0, 5, 10, 55, 100)]
    [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    return _warmed_up("llr", peak, lambda progress: peak * (1 - progress), retrain_steps, warmup)


def allr(
    peak: Any,
    retrain_steps: Any,
    before: Params,
    after: Params,
    pruned: Any,
    steps: int,
    warmup: float = WARMUP,
) -> optax.Schedule:
    """Adaptive linear learning-rate restarting: `llr`, with a first rate that the prune decides.

        start = peak clip(D / sqrt(pruned), min(retrain_steps / steps, 1), 1)
        D     = |before - after| / |before|, over all parameters

    Args:
      peak: the highest rate of the original training.
      retrain_steps: the length of the retraining.
      before, after: all params, before and after this prune.
      pruned: the fraction of the remaining weights that this prune took.
      steps: the length of the original training.
      warmup: see `llr`.

    Reference: Zimmer et al., 2023, How I Learned to Stop Worrying and Love Retraining.
    """
    lost = optax.tree.norm(optax.tree.sub(before, after))
    length = optax.tree.norm(before)
    drop = jnp.where(length > 0, lost / jnp.where(length > 0, length, 1.0), 0.0)
    share = jnp.where(pruned > 0, drop / jnp.sqrt(jnp.where(pruned > 0, pruned, 1.0)), 0.0)
    least = jnp.minimum(retrain_steps / _steps("allr", steps), 1.0)
    return llr(peak * jnp.clip(share, least, 1.0), retrain_steps, warmup)


def _warmed_up(
    what: str, peak: Any, main: Any, retrain_steps: Any, warmup: float
) -> optax.Schedule:
    """Rises to `peak`, then `main(progress)`, progress from 0 to 1 in the remaining steps."""
    if not 0 <= warmup < 1:
        raise ValueError(f"{what}: warmup is a fraction of the steps, in [0, 1); got {warmup!r}.")
    if is_known(retrain_steps) and not retrain_steps > 0:
        raise ValueError(f"{what}: retraining needs at least one step; got {retrain_steps!r}.")
    rising = warmup * retrain_steps

    def schedule(count: Any) -> jax.Array:
        part = jnp.clip(count / jnp.maximum(rising, 1e-9), 0.0, 1.0)
        progress = jnp.clip((count - rising) / (retrain_steps - rising), 0.0, 1.0)
        rise = peak * 0.5 * (1 - jnp.cos(jnp.pi * part))
        return jnp.where(count < rising, rise, main(progress))

    return schedule


def _rates(schedule: optax.Schedule, steps: int) -> jax.Array:
    """The rate of every step of the original training (steps,)."""
    counts = jnp.arange(steps)
    return jnp.broadcast_to(jnp.asarray(jax.vmap(schedule)(counts), jnp.float32), (steps,))


def _extremes(rates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The highest rate, and the lowest after it: a warm-up does not count."""
    after = jnp.arange(len(rates)) >= jnp.argmax(rates)
    return jnp.max(rates), jnp.min(jnp.where(after, rates, jnp.inf))


def _steps(what: str, steps: Any) -> int:
    if isinstance(steps, bool) or not hasattr(steps, "__index__") or steps < 1:
        raise ValueError(
            f"{what}: the steps of a training are an int of at least 1; got {steps!r}."
        )
    return int(steps)
