"""The verb `recipe`: how to train, as plain Keras objects."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.checks import FRACTION, POSITIVE, as_count, as_number, is_number, is_whole, shown
from tfopt.core.errors import InvalidArgumentError
from tfopt.training.clipping import adaptively_clipped
from tfopt.training.decay import Decay
from tfopt.training.smoothing import smoothed


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
        **options: Any,
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
        in_arrays = self._in_arrays(x)
        before = before or {}
        model.compile(type(self.optimizer).from_config(self.optimizer.get_config()), self.loss, metrics=metrics)
        model.optimizer.build(model.trainable_variables)
        whole = keras.callbacks.History()
        whole.set_model(model)
        whole.on_train_begin()
        options = {**options, "callbacks": [*self.callbacks, *callbacks]}
        for first, last in itertools.pairwise(sorted({0, *self.batch_sizes, *before, self.epochs})):
            if first in before:
                before[first]()
                model.compile(model.optimizer, self.loss, metrics=metrics)
            size = _size_at(self.batch_sizes, first) if in_arrays else None
            part = model.fit(x, y, batch_size=size, initial_epoch=first, epochs=last, **options)
            _append(whole, part)
            if model.stop_training:
                break
        return whole

    def _in_arrays(self, x: Any) -> bool:
        """True unless `x` comes in batches; raises where the batch size is to grow then."""
        in_arrays = hasattr(x, "shape") or isinstance(x, (list, tuple, dict))
        if len(self.batch_sizes) > 1 and not in_arrays:
            raise InvalidArgumentError("A growing batch size needs arrays of samples.", received=type(x).__name__)
        return in_arrays


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
    epochs, batch_size = as_count("epochs", epochs), as_count("batch_size", batch_size)
    samples = None if samples is None else as_count("samples", samples)
    ema = None if ema is None else as_number("ema", ema, FRACTION)
    falls = Decay.of(decay, decay_factor, decay_epochs, warmup_epochs)
    falls.check(epochs, samples)
    sizes = _batch_sizes(batch_size, batch_growth, epochs)
    if ema is not None and len(sizes) > 1:
        raise InvalidArgumentError("A moving average of the weights goes with one batch size.", received=f"{sizes}")
    given = _as_optimizer(optimizer)
    config = {
        **given.get_config(),
        **({} if learning_rate is None else {"learning_rate": as_number("learning_rate", learning_rate, POSITIVE)}),
        **_clipping(clipnorm, global_clipnorm, clipvalue, adaptive_clip),
        **({} if ema is None else {"use_ema": True, "ema_momentum": ema}),
    }
    if falls.counts_updates and samples is not None:
        steps = _first_steps(samples, sizes, epochs)
        config["learning_rate"] = falls.schedule(_constant(config["learning_rate"]), steps)
    made = type(given).from_config(config)
    return Recipe(
        optimizer=made if adaptive_clip is None else adaptively_clipped(made, adaptive_clip),
        loss=smoothed(loss, label_smoothing) if label_smoothing != 0 else loss,
        callbacks=(*([] if ema is None else [keras.callbacks.SwapEMAWeights()]), *falls.callbacks(epochs)),
        epochs=epochs,
        batch_sizes=sizes,
    )


def _as_optimizer(optimizer: Any) -> keras.optimizers.Optimizer:
    try:
        return keras.optimizers.get(optimizer)
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(
            "`optimizer` must be an optimizer of Keras or its name.",
            received=repr(optimizer),
            fix="Such as 'adam' or 'sgd'.",
        ) from error


def _first_steps(samples: int, sizes: dict[int, int], epochs: int) -> list[int]:
    """The number of updates before each epoch, and before the one after the last."""
    each = [math.ceil(samples / _size_at(sizes, epoch)) for epoch in range(epochs)]
    return list(itertools.accumulate(each, initial=0))


def _batch_sizes(batch_size: int, growth: Any, epochs: int) -> dict[int, int]:
    if growth is None:
        return {0: batch_size}
    whole = isinstance(growth, (tuple, list)) and all(map(is_whole, growth))
    if not whole or len(growth) != 2 or growth[0] < 2 or growth[1] < 1:
        raise InvalidArgumentError(
            "`batch_growth` must be a whole factor of at least 2 and a number of epochs.",
            received=shown(growth),
            fix="(2, 10) doubles the batch size after each 10 epochs.",
        )
    factor, every = map(int, growth)
    return {epoch: batch_size * factor ** (epoch // every) for epoch in range(0, epochs, every)}


def _size_at(sizes: Mapping[int, int], epoch: int) -> int:
    """The batch size of an epoch, of `{first epoch: batch size}`."""
    return sizes[max(first for first in sizes if first <= epoch)]


def _append(whole: keras.callbacks.History, part: keras.callbacks.History) -> None:
    """Adds the epochs of a part of a training."""
    for epoch, *values in zip(part.epoch, *part.history.values(), strict=True):
        whole.on_epoch_end(epoch, dict(zip(part.history, values, strict=True)))


def _clipping(clipnorm: Any, global_clipnorm: Any, clipvalue: Any, adaptive_clip: Any) -> dict[str, float | None]:
    """The clipping that Keras does itself; the one asked for takes the place of that of the given optimizer."""
    own = {"clipnorm": clipnorm, "global_clipnorm": global_clipnorm, "clipvalue": clipvalue}
    asked = {name: value for name, value in {**own, "adaptive_clip": adaptive_clip}.items() if value is not None}
    if len(asked) > 1:
        raise InvalidArgumentError("Gradients are clipped in one way.", received=", ".join(asked))
    checked = {name: as_number(name, value, POSITIVE) for name, value in asked.items()}
    return {name: checked.get(name) for name in own} if asked else {}


def _constant(rate: Any) -> float:
    """The learning rate of an optimizer; raises where it is a schedule."""
    if not is_number(rate):
        raise InvalidArgumentError(
            "A decay takes a number as learning rate.",
            received="a schedule",
            fix="Leave `decay` out, or pass `learning_rate`.",
        )
    return float(rate)
