"""Search spaces: which variants of a model there are, as a Keras Tuner `HyperModel`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from tfopt.core.checks import POSITIVE, Range, as_choice, as_numbers, as_whole
from tfopt.core.errors import InvalidArgumentError, NothingToDoError, TfoptError, first_line
from tfopt.core.keras_internals import compile_metrics, compile_options
from tfopt.core.models.graph import Graph, read, with_graph
from tfopt.core.models.opening import opened
from tfopt.core.models.rewrite import rewrite
from tfopt.distillation.initialization import init_from
from tfopt.editing.width import reinitialised
from tfopt.training.decay import DECAYS
from tfopt.training.recipes import recipe
from tfopt.tuner.axes import ACTIVATION, KERNEL_SIZE, PER, POOLING, Axis, depth_axes, edited, swap_axes, width_axes
from tfopt.tuner.packages import load

keras_tuner: Any = load("keras_tuner")
HyperModel: Any = keras_tuner.HyperModel


class SearchSpace(HyperModel):
    """The variants of a trained or fresh model. Made by `from_model`; every tuner of Keras Tuner takes it.

    Args:
        model: compiled; it is never changed.
        axes: of the architecture.
        training: `{name: values}` of the training: `lr`, `batch_size`, `decay`, `clipnorm`.
        inherit: variants start from the weights of the model.
        missed: `{choice: reason}` of what was asked for and is not in the space.
    """

    def __init__(
        self,
        model: keras.Model,
        axes: Sequence[Axis],
        training: dict[str, tuple],
        *,
        inherit: bool = True,
        missed: dict[str, str] | None = None,
    ):
        super().__init__(name=model.name)
        self.model, self.axes, self.training, self.inherit = model, tuple(axes), training, inherit
        self.missed = missed or {}

    @classmethod
    def from_model(
        cls,
        model: keras.Model,
        *,
        activation: Sequence[str] = (),
        kernel_size: Sequence[int] = (),
        pooling: Sequence[str] = (),
        width: Sequence[float] = (),
        depth: Sequence[float] = (),
        lr: Sequence[float] = (),
        batch_size: Sequence[int] = (),
        decay: Sequence[str | None] = (),
        clipnorm: Sequence[float | None] = (),
        per: str = "model",
        inherit: bool = True,
    ) -> SearchSpace:
        """Returns the space of what can be changed about a model. Only what is named here varies.

        Each edit is tried on the model once, so that what cannot be built is not in the space: a kernel larger than
        its input, a width that leaves branches of different widths to be added. `missed` says what was left out, why.

        Args:
            model: a built, compiled Sequential or Functional model; trials are compiled as it is.
            activation: names as `swap_activation` takes them, such as `("relu", "elu", "prelu")`.
            kernel_size: of convolutions, such as `(1, 3, 5)`, as `swap_kernel_size` takes them. Kernels of size 1 stay.
            pooling: of `"max"`, `"average"`, `"adaptive"`, as `swap_pooling` takes them.
            width: factors of all widths, as `scale_width` takes them.
            depth: fractions of the blocks that can be dropped which stay, in [0, 1]; spread evenly over the model.
            lr: learning rates; a pair of lowest and highest is a range on a logarithmic scale.
            batch_size: in samples.
            decay: of None and the names that `recipe` takes: "step", "exponential", "cosine", "plateau".
            clipnorm: bounds of the norm of the gradient of each weight variable; None is no clipping.
            per: choose activation, kernel size and pooling once for the `"model"`, for each `"stage"` (all that reads
                inputs of one spatial size), or for each `"layer"`.
            inherit: variants start from the weights of `model`: kernels cropped or padded, of fewer channels the most
                important ones, as `tfopt.init_from` takes them; what is wider starts anew. With False all start anew.

        Raises:
            InvalidArgumentError: a value of the wrong kind, nothing to search, or choices that do not go together.
            UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.

        Example:
            >>> dense = keras.layers.Dense
            >>> model = keras.Sequential([keras.Input((8,)), dense(16, "relu"), dense(2)])
            >>> model.compile("adam", "mse")
            >>> space = SearchSpace.from_model(model, activation=("relu", "elu"), width=(0.5, 1), lr=(1e-4, 1e-2))
            >>> hp = keras_tuner.HyperParameters()
            >>> built = space.build(hp)
            >>> hp.values["activation"], hp.values["width"], hp.values["lr"]
            ('relu', 1.0, 0.001)
        """
        model = with_graph(model)
        graph = read(model)
        _check_compiled(model)
        model = _as_graph(model, graph)
        per = as_choice("per", per, PER)
        width = as_numbers("width", width, POSITIVE)
        depth = as_numbers("depth", depth, Range(least=0, most=1))
        training = _training(lr, batch_size, decay, clipnorm)
        missed: dict[str, str] = {}
        axes = depth_axes(model, depth, missed) if depth else []
        for swap, values in ((KERNEL_SIZE, kernel_size), (POOLING, pooling), (ACTIVATION, activation)):
            axes += swap_axes(model, swap, values, per, missed) if values else []
        axes += width_axes(model, width, missed) if width else []
        space = cls(model, axes, training, inherit=inherit, missed=missed)
        space._check()
        return space

    def build(self, hp: Any) -> keras.Model:
        """A new, compiled variant; what `hp` chooses is recorded in it."""
        values = {axis.name: hp.Choice(axis.name, list(axis.values), default=axis.default) for axis in self.axes}
        options = self._optimizer_options(hp)
        for name in ("batch_size", "decay"):
            if name in self.training:
                hp.Choice(name, list(self.training[name]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an edit warns of was said when the space was made
            variant = self._edited(values)
        compiled = compile_options(self.model)
        optimizer = keras.optimizers.get(compiled["optimizer"])
        fresh = type(optimizer).from_config({**optimizer.get_config(), **options})
        variant.compile(**{**compiled, **compile_metrics(self.model), "optimizer": fresh})
        return variant

    def fit(self, hp: Any, model: keras.Model, x: Any, y: Any = None, **options: Any) -> keras.callbacks.History:
        """Trains with the batch size and the decay that `hp` chose; `options` as `keras.Model.fit` has them."""
        if "batch_size" in self.training:
            options["batch_size"] = hp.get("batch_size")
        decay = hp.get("decay") if "decay" in self.training else "none"
        if decay != "none":
            steps = _steps(x, options.get("batch_size"))
            plan = recipe(
                epochs=options.get("epochs", 1), samples=steps, batch_size=1, optimizer=model.optimizer, decay=decay
            )
            model.compile(**{**compile_options(model), **compile_metrics(model), "optimizer": plan.optimizer})
            options["callbacks"] = [*plan.callbacks, *(options.get("callbacks") or ())]
        return model.fit(x, y, **options)

    def _edited(self, values: dict[str, Any]) -> keras.Model:
        full = edited(self.model, [axis for axis in self.axes if axis.name != "width"], values)
        variant = edited(full, [axis for axis in self.axes if axis.name == "width"], values)
        if variant is full:
            return rewrite(read(full)).model if self.inherit else reinitialised(full)
        return _sliced(variant, full) if self.inherit else variant

    def _optimizer_options(self, hp: Any) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if "lr" in self.training:
            rates = self.training["lr"]
            if len(rates) == 2:
                own = keras.optimizers.serialize(self.model.optimizer)["config"]["learning_rate"]
                inside = isinstance(own, float) and rates[0] <= own <= rates[1]
                default = float(f"{own:.7g}") if inside else rates[0]  # of a float32
                options["learning_rate"] = hp.Float("lr", *rates, sampling="log", default=default)
            else:
                options["learning_rate"] = hp.Choice("lr", list(rates))
        if "clipnorm" in self.training:
            options["clipnorm"] = hp.Choice("clipnorm", list(self.training["clipnorm"])) or None
        return options

    def _check(self) -> None:
        """Raises without a choice; builds the model with the first and with the last value of every axis."""
        if not self.axes and not self.training:
            reasons = "; ".join(f"{choice}: {reason}" for choice, reason in self.missed.items())
            raise InvalidArgumentError("The space must hold a choice.", received=reasons or "none")
        for place in (0, -1):
            values = {axis.name: axis.values[place] for axis in self.axes}
            try:
                if sum(values[axis.name] in axis.edits for axis in self.axes) > 1:
                    self._edited(values)
            except (TfoptError, ValueError) as error:
                listed = ", ".join(f"{name}={value}" for name, value in values.items())
                raise InvalidArgumentError(
                    "The choices of a space must go together.", received=f"{listed}: {first_line(error)}"
                ) from error


def _sliced(narrow: keras.Model, wide: keras.Model) -> keras.Model:
    """The model, with the weights of the most important channels of a wider one where it has any of the kind."""
    try:
        return init_from(narrow, wide, by="name", verbose=0)
    except NothingToDoError:
        return narrow


def _as_graph(model: keras.Model, graph: Graph) -> keras.Model:
    """The model itself, or a copy compiled like it in which authors' own layers are open, to edits and in files."""
    result = opened(graph, composed=False).model
    if result is not model:
        result.compile(**{**compile_options(model), **compile_metrics(model)})
    return result


def _check_compiled(model: keras.Model) -> None:
    if not model.compiled or model.loss is None:
        raise InvalidArgumentError(
            "The model must be compiled: trials are compiled as it is.",
            received=f"'{model.name}'",
            fix="Call `model.compile(optimizer, loss, metrics)` first.",
        )


def _training(lr: Any, batch_size: Any, decay: Any, clipnorm: Any) -> dict[str, tuple]:
    """The choices of training as Keras Tuner takes them: values of one type, "none" and 0 for None."""
    lr = as_numbers("lr", lr, POSITIVE)
    sizes = as_numbers("batch_size", batch_size, POSITIVE, what="a list of whole numbers above 0")
    batch_size = [as_whole("batch_size", size, what="a list of whole numbers above 0") for size in sizes]
    as_numbers("clipnorm", [bound for bound in clipnorm if bound is not None], POSITIVE)
    if len(lr) == 2 and not lr[0] < lr[1]:
        raise InvalidArgumentError("A range of learning rates goes from lowest to highest.", received=repr(lr))
    for name in decay:
        if name not in (None, *DECAYS):
            raise InvalidArgumentError(f"`decay` holds None and {', '.join(DECAYS)}.", received=repr(name))
    found = {
        "lr": tuple(map(float, lr)),
        "batch_size": tuple(batch_size),
        "decay": tuple(name or "none" for name in decay),
        "clipnorm": tuple(0.0 if bound is None else float(bound) for bound in clipnorm),
    }
    return {name: tuple(dict.fromkeys(values)) for name, values in found.items() if values}


def _steps(x: Any, batch_size: int | None) -> int:
    """Updates in an epoch."""
    if hasattr(x, "cardinality"):
        steps = int(x.cardinality())
    elif isinstance(x, keras.utils.PyDataset):
        steps = x.num_batches or 0
    else:
        steps = math.ceil(len(keras.tree.flatten(x)[0]) / (batch_size or 32))
    if steps < 1:
        raise InvalidArgumentError(
            "A decay needs the number of batches in an epoch.", received=f"{type(x).__name__} of unknown length"
        )
    return steps
