"""The verb `fuse`: several models, one model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras

from tfopt.core.data.inputs import Input, inputs_of, is_numbered
from tfopt.core.data.outputs import OutputKind
from tfopt.core.data.pairs import in_order_of, paired, paired_outputs
from tfopt.core.errors import InvalidArgumentError, TfoptError, first_line
from tfopt.core.keras_internals import create_values, functional_of, only_own_values
from tfopt.core.models.copying import Copies
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import Graph, check_finite, read, with_graph
from tfopt.core.models.rewrite import rewrite, transfer_settings, transfer_values
from tfopt.fusion.cascade import Cascade, CascadeSelection
from tfopt.fusion.chains import SerialFusion, StackedFusion, as_chain
from tfopt.fusion.kinds import fusable
from tfopt.fusion.layers import GatedFusion, ParallelFusion, VotingFusion
from tfopt.fusion.plan import SEPARATE, SHARED, Plan, check_choices, layer_for, plan_of, with_weight


def fuse(
    models: Sequence[keras.Model],
    how: str = "parallel",
    *,
    combine: str | None = None,
    weights: Sequence[float] | str | None = None,
    kind: str | None = None,
    meta: Any = None,
    inputs: str = SHARED,
    layers: str | Sequence[str] | None = None,
    head: Any = None,
    trainable: bool = False,
    thresholds: Any = None,
    name: str = "fused",
) -> keras.Model:
    """Returns one model that holds a copy of each of `models` as a branch, and fuses what they give.

    Each branch is a nested model of its own name (numbered where names repeat), frozen unless `trainable`. By default
    the outputs of the models are fused, each with its like where they have several. They are averaged as they are:
    probabilities where the models end in a softmax or sigmoid, logits or numbers where they do not. Models that end in
    a log_softmax are fused by their probabilities, and the fused model gives probabilities; only `"stacked"`,
    `"concat"` and `"serial"` read log-probabilities as they are. Models that end differently are refused, as the mean
    of a probability and a logit means nothing. What an output is, is told by the layers that give it, or, where these
    do not tell, by what the model gives for noise.

    Args:
        models: two or more built Keras models. The same model twice gives two copies.
        how: `"parallel"`, see `ParallelFusion`; its `combine` may stand here too, as in `"mean"`. `"serial"`: each
            model reads what the one before gives, through a learned projection where shapes differ, see
            `SerialFusion`. `"stacked"`: a head reads all outputs side by side, see `StackedFusion`; train it, or use
            `tfopt.stack`. `"vote"`: see `VotingFusion`; linear outputs are taken as logits of classes. `"gated"`: the
            weights depend on the outputs, see `GatedFusion`; train the gate. `"cascade"`: the first model answers
            where it is sure, else the next, see `Cascade`, whose `predict` skips what is not needed.
        combine: for `"parallel"`: `"mean"` (default), `"weighted"` (default where there are weights), `"max"`,
            `"product"` or `"concat"`. The product is taken of logits, a softmax behind their sum, which is the
            normalised product of the probabilities. For `"serial"`: `"chain"` (default) or `"concat"`.
        weights: of the models for `"weighted"` and `"vote"`: numbers of at least 0 that sum to 1, None for equal ones,
            or, for `"weighted"`, `"learned"`. With `inputs="shared"` a model of weight 0 is left out.
        kind: for `"vote"`: `"soft"` (default) or `"hard"`.
        meta: for `"stacked"`: the head. By default Dense 64 with a rectifier, then Dense as wide as one model's
            output, with its softmax, log_softmax or sigmoid.
        inputs: `"shared"`: all models read the same inputs. `"separate"`: each has inputs of its own, in the order of
            the models.
        layers: for fusion of features: the name of the layer whose output is fused, one for all models or one each.
            What lies behind it is left out. Other widths are brought to that of the first model by a learned matrix.
        head: a layer, a model or a list of layers to put behind the fusion, for instance behind fused features. As
            with `meta`, copies are used.
        trainable: True trains the branches on too; their layers that are frozen stay so.
        thresholds: for `"cascade"`: how sure each model but the last has to be to answer, as highest probability (of
            the softmax of linear outputs): numbers of at least 0, see `tfopt.fit_thresholds`.
        name: of the new model.

    Returns:
        A new, uncompiled model. Weights and weight constraints are those of the models, which are not changed. Layers
        named `"fusion"` (`"fusion_1"`, ... for several outputs) do the fusing.

    Raises:
        InvalidArgumentError: unknown or contradictory arguments; weights out of range; fewer than two models; outputs
            or inputs that do not fit together, as models of different classes.
        UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.
        NonFiniteError: NaN or infinity in the weights of a model.

    Source: mean, product and maximum: Kittler et al. 1998, https://doi.org/10.1109/34.667881. Stacking: Wolpert 1992,
    https://doi.org/10.1016/S0893-6080(05)80023-1.

    Example:
        >>> def classifier(units):
        ...     dense = keras.layers.Dense
        ...     return keras.Sequential([keras.Input((8,)), dense(units, "relu"), dense(3, "softmax")], name="net")
        >>> fused = fuse([classifier(4), classifier(16)], "weighted", weights=[0.25, 0.75])
        >>> [layer.name for layer in fused.layers]
        ['input', 'net', 'net_1', 'fusion']
    """
    models = with_graph(models)
    given = {"combine": combine, "weights": weights, "kind": kind, "meta": meta, "thresholds": thresholds}
    plan = plan_of(how, given, layers is not None)
    models = _checked(models)
    check_choices(plan, models, inputs, layers, head, trainable)
    plan, kept = with_weight(plan, len(models), inputs)
    names = _Names(name)
    specs = _new_inputs([models[i] for i in kept], inputs, plan, names)
    tensors = [_to_fuse(models[i], models[kept[0]], layer_for(layers, i, len(models))) for i in kept]
    branches = [_branch(models[i], own, names, trainable) for i, own in zip(kept, tensors, strict=True)]
    with _as_argument_error(plan):
        outputs = _fused(plan, branches, specs, names)
        kind_of_model = Cascade if plan.how == "cascade" else keras.Model
        return kind_of_model(specs.structure, _behind(outputs, head, names), name=name)


# What the default head of a stacked fusion ends in, where the models end in it.
_ACTIVATIONS: dict[OutputKind | None, str] = {
    OutputKind.PROBABILITIES: "softmax",
    OutputKind.LOG_PROBABILITIES: "log_softmax",
    OutputKind.INDEPENDENT: "sigmoid",
}


@dataclass(frozen=True)
class _Inputs:
    """Inputs of the new model: in their structure, and as each branch takes them."""

    structure: Any
    per_branch: list[Any]


class _Names:
    """Gives each layer of the new model a name of its own."""

    def __init__(self, *taken: str):
        self.taken = set(taken)

    def unique(self, name: str) -> str:
        found, number = name, 0
        while found in self.taken:
            number += 1
            found = f"{name}_{number}"
        self.taken.add(found)
        return found


def _checked(models: Any) -> list[keras.Model]:
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise InvalidArgumentError(
            "`models` must be a list of two or more Keras models.",
            received=f"{len(models)} of them" if isinstance(models, (list, tuple)) else type(models).__name__,
        )
    for model in models:
        graph = read(model)
        check_not_quantized(graph, "fuse")
        check_finite(graph)
    return list(models)


def _new_inputs(models: list[keras.Model], inputs: str, plan: Plan, names: _Names) -> _Inputs:
    first = models[0]
    if plan.how == "serial":
        structure = _like(first, names)
        return _Inputs(structure, [structure])
    if inputs == SEPARATE:
        own = [_like(model, names) for model in models]
        return _Inputs(keras.tree.flatten(own), own)
    orders = [_shared_order(first, model) for model in models]
    structure = _like(first, names)
    flat = keras.tree.flatten(structure)
    return _Inputs(structure, [in_order_of(model, flat, order) for model, order in zip(models, orders, strict=True)])


def _shared_order(first: keras.Model, model: keras.Model) -> list[int]:
    """For each input of a model the place of the same input of the first."""
    mine, theirs = inputs_of(first), inputs_of(model)
    order = paired(mine, theirs, first.name, model.name) if len(mine) == len(theirs) else []
    if not order or any(_kind(mine[place]) != _kind(own) for place, own in zip(order, theirs, strict=True)):
        raise InvalidArgumentError(
            "Models with shared inputs must take the same inputs.",
            received=f"{list(map(_kind, mine))} for '{first.name}', {list(map(_kind, theirs))} for '{model.name}'",
            fix="Pass inputs='separate', or put a Resizing or Reshape in front of a model.",
        )
    return order


def _kind(own: Input) -> tuple:
    return own.shape[1:], own.dtype


def _like(model: keras.Model, names: _Names) -> Any:
    """New inputs in the structure of a model's."""
    return keras.tree.map_structure(
        lambda tensor: keras.Input(
            batch_shape=tensor.shape, dtype=tensor.dtype, name=names.unique(_plain(tensor._keras_history.operation))
        ),
        _bare(functional_of(model).input),
    )


def _bare(structure: Any) -> Any:
    """The tensors of a model's side; a list of one as that one, since models differ in it by how they were made."""
    return structure[0] if isinstance(structure, (list, tuple)) and len(structure) == 1 else structure


def _plain(layer: keras.layers.InputLayer) -> str:
    """The name of an input; `"input"` for one that Keras has numbered."""
    return "input" if is_numbered(layer.name) else layer.name


def _to_fuse(model: keras.Model, first: keras.Model, layer: str | None) -> Any:
    """What a branch gives: the output of a layer, or the outputs of the model; in a list those of the first's names."""
    if layer is not None:
        return _features(model, layer)
    outputs = _bare(functional_of(model).output)
    if not isinstance(outputs, (list, tuple)) or len(outputs) != len(functional_of(first).outputs):
        return outputs
    return type(outputs)(outputs[place] for place in paired_outputs(model, first))


def _branch(model: keras.Model, outputs: Any, names: _Names, trainable: bool) -> keras.Model:
    copied = _renamed(model, names.unique(model.name), outputs)
    if not (trainable and model.trainable):
        copied.trainable = False
    return copied


def _renamed(model: keras.Model, name: str, outputs: Any = None) -> keras.Model:
    """A copy of another name, of the whole model or as far as some tensors of it."""
    functional = functional_of(model)
    outputs = _bare(functional.output) if outputs is None else outputs
    return rewrite(Graph(keras.Model(_bare(functional.input), outputs, name=name))).model


def _features(model: keras.Model, layer: str) -> Any:
    """The output of a layer."""
    try:
        return model.get_layer(layer).output
    except (ValueError, AttributeError) as error:
        raise InvalidArgumentError(
            "`layers` must name layers of the models, each called once and not within a nested model.",
            received=f"'{layer}' for '{model.name}': {first_line(error)}",
            fix=f"The layers are: {', '.join(own.name for own in model.layers)}.",
        ) from error


def _fused(plan: Plan, branches: list[keras.Model], inputs: _Inputs, names: _Names) -> Any:
    """The fused outputs, in the structure of the first branch's."""
    if plan.how == "serial":
        return _in_series(plan, branches, inputs.structure)
    for branch in branches[1:]:
        keras.tree.assert_same_structure(branches[0].output, branch.output)
    branches, kinds = fusable(plan, branches)
    called = [branch(own) for branch, own in zip(branches, inputs.per_branch, strict=True)]
    columns = zip(*(keras.tree.flatten(outputs) for outputs in called), strict=True)
    outputs = [_layer(plan, kind, names)(list(column)) for kind, column in zip(kinds, columns, strict=True)]
    return keras.tree.pack_sequence_as(called[0], outputs)


def _in_series(plan: Plan, branches: list[keras.Model], inputs: Any) -> Any:
    for place, branch in enumerate(branches):
        if len(branch.outputs) != 1 or (place and len(branch.inputs) != 1) or keras.tree.is_nested(inputs):
            raise InvalidArgumentError(
                "Models in series must have one input and one output.",
                received=f"'{branch.name}' with {len(branch.inputs)} and {len(branch.outputs)}",
            )
    chain = SerialFusion(branches, plan.combine, name="fusion")
    chain.build(inputs.shape)
    return chain.call(inputs)


def _behind(outputs: Any, head: Any, names: _Names) -> Any:
    """What the head gives for the fused output."""
    chain = as_chain(head, "head")
    if chain and keras.tree.is_nested(outputs):
        raise InvalidArgumentError(
            "A `head` must stand behind one fused output.",
            received=f"{len(keras.tree.flatten(outputs))} outputs",
            fix="Name the layers to fuse by `layers`, or put the heads behind the fused model.",
        )
    for layer in chain:
        outputs = _copied(layer, names)(outputs)
    return outputs


def _layer(plan: Plan, kind: OutputKind | None, names: _Names) -> keras.layers.Layer:
    """A fusion layer; outputs are fused in float32, whatever the global policy."""
    options: dict[str, Any] = {"name": names.unique("fusion")}
    if not plan.of_features:
        options["dtype"] = "float32"
    multi_label = kind is OutputKind.INDEPENDENT
    if plan.how == "vote":
        logits = kind is OutputKind.NUMBERS
        return VotingFusion(plan.kind, plan.weights, from_logits=logits, multi_label=multi_label, **options)
    if plan.how == "cascade":
        return CascadeSelection(plan.thresholds, from_logits=kind is OutputKind.NUMBERS, **options)
    if plan.how == "gated":
        return GatedFusion(project=plan.of_features, **options)
    if plan.how == "stacked":
        if plan.meta is not None:
            return StackedFusion([_copied(layer, names) for layer in as_chain(plan.meta, "meta")], **options)
        return StackedFusion(activation=_ACTIVATIONS.get(kind), **options)
    if plan.combine == "product":
        return ParallelFusion("product", from_logits=True, multi_label=multi_label, **options)
    return ParallelFusion(plan.combine, plan.weights, project=plan.of_features and plan.combine != "concat", **options)


def _copied(layer: keras.layers.Layer, names: _Names) -> keras.layers.Layer:
    """A copy of a layer or model with its weights, if it has any yet."""
    if isinstance(layer, keras.Model) and layer.built:
        read(layer)
        return _renamed(layer, names.unique(layer.name))
    with only_own_values():
        copied = Copies(layer).of(layer)
        copied.name = names.unique(layer.name)
        if layer.built:
            if not copied.built:
                copied.build_from_config(layer.get_build_config())
            transfer_values(layer, copied)
            create_values()
            transfer_settings(layer, copied, {})
    return copied


@contextlib.contextmanager
def _as_argument_error(plan: Plan) -> Iterator[None]:
    """What Keras says where tensors do not fit together, as an error that names `fuse`."""
    try:
        yield
    except TfoptError:
        raise
    except (ValueError, TypeError) as error:
        raise InvalidArgumentError(
            "The models, `meta` and `head` must fit together.",
            received=first_line(error),
            fix=f"how='{plan.how}' joins the tensors that `models`, or their `layers`, give.",
        ) from error
