"""The verb `recipe`: how to train, as plain Keras objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.training.clipping import adaptively_clipped
from tfopt.training.smoothing import smoothed

DECAYS = ("step", "exponential", "cosine", "plateau")


@dataclass(frozen=True)
class Recipe:
    """How to train, each part an object of Keras that may be used alone.

    Args:
        optimizer: with its learning rate or schedule, clipping and averaging. A template: `fit` takes a copy.
        loss: what `compile` takes.
        callbacks: for `fit`.
        epochs: how long.
        batch_sizes: `{first epoch: batch size}`, epochs counted from 0.
    """

    optimizer: keras.optimizers.Optimizer
    loss: Any
    callbacks: tuple[keras.callbacks.Callback, ...]
    epochs: int
    batch_sizes: dict[int, int]

    def learning_rate(self, step: int) -> float:
        """The learning rate of an update, counted from 0; what a plateau makes of it is not known before."""
        rate = keras.optimizers.serialize(self.optimizer)["config"]["learning_rate"]
        return rate if isinstance(rate, float) else float(keras.optimizers.schedules.deserialize(rate)(step))

    def fit(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        metrics: Any = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        before: Mapping[int, Callable[[], None]] | None = None,
        **options,
    ) -> keras.callbacks.History:
        """Compiles `model` and trains it in place.

        Where the batch size grows or `before` says so, `fit` of Keras is called anew: callbacks begin anew there, the
        optimizer goes on.

        Args:
            model: any Keras model.
            x, y, options: as `fit` of Keras takes them. A growing batch size needs arrays.
            metrics: as `compile` takes them.
            callbacks: further ones.
            before: `{epoch: function}`, called before that epoch. It may change which layers are trainable.

        Returns:
            The history of all epochs.

        Raises:
            InvalidArgumentError: batches instead of arrays with a growing batch size.
        """
        in_arrays = hasattr(x, "shape") or isinstance(x, (list, tuple, dict))
        if len(self.batch_sizes) > 1 and not in_arrays:
            raise InvalidArgumentError("A growing batch size needs arrays of samples.", received=type(x).__name__)
        before = before or {}
        model.compile(type(self.optimizer).from_config(self.optimizer.get_config()), self.loss, metrics=metrics)
        model.optimizer.build(model.trainable_variables)
        whole = keras.callbacks.History()
        whole.set_model(model)
        whole.on_train_begin()
        for first, last in itertools.pairwise(sorted({0, *self.batch_sizes, *before, self.epochs})):
            if first in before:
                before[first]()
                model.compile(model.optimizer, self.loss, metrics=metrics)
            size = self.batch_sizes[max(epoch for epoch in self.batch_sizes if epoch <= first)]
            part = model.fit(
                x,
                y,
                batch_size=size if in_arrays else None,
                initial_epoch=first,
                epochs=last,
                callbacks=[*self.callbacks, *callbacks],
                **options,
            )
            for epoch, *values in zip(part.epoch, *part.history.values(), strict=True):
                whole.on_epoch_end(epoch, dict(zip(part.history, values, strict=True)))
            if model.stop_training:
                break
        return whole


def recipe(
    *,
    epochs: int,
    samples: int | None = None,
    optimizer: str | keras.optimizers.Optimizer = "adam",
    learning_rate: float | None = None,
    batch_size: int = 32,
    loss: Any = None,
    decay: str | None = None,
    decay_factor: float | None = None,
    decay_epochs: int | None = None,
    warmup_epochs: int = 0,
    clipnorm: float | None = None,
    global_clipnorm: float | None = None,
    clipvalue: float | None = None,
    adaptive_clip: float | None = None,
    batch_growth: tuple[int, int] | None = None,
    label_smoothing: float = 0.0,
    ema: float | None = None,
) -> Recipe:
    """Returns an optimizer, a loss and callbacks that go together, and what `fit` needs beside them.

    Args:
        epochs: how long to train.
        samples: number of training samples, for `decay` along the updates.
        optimizer: name, or one of Keras whose other settings are kept.
        learning_rate: at its highest; that of the optimizer by default.
        batch_size: in samples, at the start.
        loss: what `compile` takes.
        decay: `"step"`: times `decay_factor` (0.1) after each `decay_epochs` (a third of the epochs). `"exponential"`:
            the same, smoothly, at each update. `"cosine"`: along half a cosine down to 0, after `warmup_epochs` in
            which it rises from 0. `"plateau"`: times `decay_factor` (0.1) when `val_loss` has not fallen for
            `decay_epochs` (a tenth of the epochs).
        decay_factor: in (0, 1).
        decay_epochs: at least 1.
        warmup_epochs: below `epochs`.
        clipnorm: bounds the norm of the gradient of each weight variable.
        global_clipnorm: bounds the norm of all gradients together.
        clipvalue: bounds each element of the gradients.
        adaptive_clip: bounds gradients by the norm of their weights (Brock et al. 2021). One of the four.
        batch_growth: `(factor, epochs)` multiplies the batch size after each so many epochs, in place of a decay of
            the learning rate (Smith et al. 2018).
        label_smoothing: in [0, 1); `loss` is a cross-entropy then.
        ema: momentum in (0, 1) of a moving average of the weights, which is used in validation and in the end.

    Returns:
        A `Recipe`; `recipe.fit(model, x, y)` trains, or take its parts for your own `compile` and `fit`.

    Raises:
        InvalidArgumentError: a value out of range, or values that do not go together.

    Source: Smith et al. 2018, https://arxiv.org/abs/1711.00489; Loshchilov and Hutter 2017 (cosine),
        https://arxiv.org/abs/1608.03983; Brock et al. 2021, https://arxiv.org/abs/2102.06171.

    Example:
        >>> plan = recipe(epochs=6, samples=100, batch_size=10, learning_rate=0.1, decay="step", clipnorm=1.0)
        >>> [round(plan.learning_rate(step), 6) for step in (0, 19, 20, 40)]
        [0.1, 0.1, 0.01, 0.001]
        >>> plan.optimizer.clipnorm
        1.0
    """
    _check_whole(epochs=epochs, batch_size=batch_size, samples=samples, decay_epochs=decay_epochs)
    _check_fractions(decay_factor=decay_factor, ema=ema)
    _check_decay(decay, samples, decay_factor, decay_epochs, warmup_epochs, epochs)
    sizes = _batch_sizes(batch_size, batch_growth, epochs)
    if ema is not None and len(sizes) > 1:
        raise InvalidArgumentError("A moving average of the weights goes with one batch size.", received=f"{sizes}")
    given = _as_optimizer(optimizer)
    config = given.get_config()
    if learning_rate is not None:
        config["learning_rate"] = _positive(learning_rate=learning_rate)
    config |= _clipping(clipnorm, global_clipnorm, clipvalue, adaptive_clip)
    config |= {} if ema is None else {"use_ema": True, "ema_momentum": ema}
    callbacks: list[keras.callbacks.Callback] = [] if ema is None else [keras.callbacks.SwapEMAWeights()]
    if decay == "plateau":
        patience = decay_epochs or math.ceil(epochs / 10)
        callbacks.append(keras.callbacks.ReduceLROnPlateau(factor=decay_factor or 0.1, patience=patience))
    elif decay is not None and samples is not None:
        steps = _first_steps(samples, sizes, epochs)
        peak = _number(config["learning_rate"])
        config["learning_rate"] = _schedule(decay, peak, steps, decay_factor or 0.1, decay_epochs, warmup_epochs)
    made = type(given).from_config(config)
    return Recipe(
        optimizer=made if adaptive_clip is None else adaptively_clipped(made, adaptive_clip),
        loss=smoothed(loss, label_smoothing) if label_smoothing != 0 else loss,
        callbacks=tuple(callbacks),
        epochs=epochs,
        batch_sizes=sizes,
    )


def _as_optimizer(optimizer: Any) -> keras.optimizers.Optimizer:
    try:
        return keras.optimizers.get(optimizer)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(
            "`optimizer` is an optimizer of Keras or its name.",
            received=repr(optimizer),
            fix="Such as 'adam' or 'sgd'.",
        ) from error


def _first_steps(samples: int, sizes: dict[int, int], epochs: int) -> list[int]:
    """The number of updates before each epoch, and before the one after the last."""
    each = [math.ceil(samples / sizes[max(e for e in sizes if e <= epoch)]) for epoch in range(epochs)]
    return list(itertools.accumulate(each, initial=0))


def _schedule(
    decay: str, peak: float, steps: list[int], factor: float, every: int | None, warmup: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    schedules = keras.optimizers.schedules
    epochs, total = len(steps) - 1, steps[-1]
    every = every or math.ceil(epochs / 3)
    if decay == "cosine":
        start = {"warmup_target": peak, "warmup_steps": steps[warmup]} if warmup else {}
        return schedules.CosineDecay(0.0 if warmup else peak, total - steps[warmup], **start)
    if decay == "exponential":
        return schedules.ExponentialDecay(peak, total * every / epochs, factor)
    changes = range(every, epochs, every)
    values = [peak * factor**i for i in range(len(changes) + 1)]
    # a boundary is the last update of the old value
    return schedules.PiecewiseConstantDecay([steps[epoch] - 1 for epoch in changes], values)


def _batch_sizes(batch_size: int, growth: Any, epochs: int) -> dict[int, int]:
    if growth is None:
        return {0: batch_size}
    whole = isinstance(growth, (tuple, list)) and all(type(part) is int for part in growth)
    if not whole or len(growth) != 2 or growth[0] < 2 or growth[1] < 1:
        raise InvalidArgumentError(
            "`batch_growth` is a whole factor of at least 2 and a number of epochs.",
            received=repr(growth),
            fix="(2, 10) doubles the batch size after each 10 epochs.",
        )
    factor, every = growth
    return {epoch: batch_size * factor ** (epoch // every) for epoch in range(0, epochs, every)}


def _clipping(clipnorm, global_clipnorm, clipvalue, adaptive_clip) -> dict[str, float]:
    """The clipping that Keras does itself; the one asked for takes the place of that of the given optimizer."""
    own = {"clipnorm": clipnorm, "global_clipnorm": global_clipnorm, "clipvalue": clipvalue}
    asked = {name: value for name, value in {**own, "adaptive_clip": adaptive_clip}.items() if value is not None}
    if len(asked) > 1:
        raise InvalidArgumentError("Gradients are clipped in one way.", received=", ".join(asked))
    for name, value in asked.items():
        _positive(**{name: value})
    return own if asked else {}


def _check_decay(decay, samples, factor, every, warmup, epochs) -> None:
    if decay not in (None, *DECAYS):
        raise InvalidArgumentError(f"`decay` is one of {', '.join(DECAYS)}, or None.", received=repr(decay))
    if decay in ("step", "exponential", "cosine") and samples is None:
        raise InvalidArgumentError(
            f"`decay='{decay}'` counts updates and needs the number of training samples.", fix="Pass `samples=len(x)`."
        )
    if decay in (None, "cosine") and not (factor is None and every is None):
        raise InvalidArgumentError(
            "`decay_factor` and `decay_epochs` are for decay 'step', 'exponential' and 'plateau'.", received=repr(decay)
        )
    if type(warmup) is not int or not 0 <= warmup < epochs or (warmup and decay != "cosine"):
        raise InvalidArgumentError(
            "`warmup_epochs` is a whole number below `epochs`, for `decay='cosine'`.",
            received=f"{warmup!r} with {epochs} epochs and decay={decay!r}",
        )


def _check_whole(**values) -> None:
    for name, value in values.items():
        if value is None and name not in ("epochs", "batch_size"):
            continue
        if type(value) is not int or value < 1:
            raise InvalidArgumentError(f"`{name}` is a whole number of at least 1.", received=repr(value))


def _positive(**named) -> float:
    ((name, value),) = named.items()
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise InvalidArgumentError(f"`{name}` is a finite number above 0.", received=repr(value))
    return value


def _check_fractions(**values) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, (int, float)) or not 0 < value < 1):
            raise InvalidArgumentError(f"`{name}` lies between 0 and 1.", received=repr(value))


def _number(rate: Any) -> float:
    if isinstance(rate, bool) or not isinstance(rate, (int, float)):
        raise InvalidArgumentError(
            "A decay takes a number as learning rate.",
            received="a schedule",
            fix="Leave `decay` out, or pass `learning_rate`.",
        )
    return float(rate)
