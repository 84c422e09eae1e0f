"""What TFMOT does for tfopt.

Two things come from here. TFMOT's pruning schedules serve Keras 3 as they are: `PolynomialDecay`, `ConstantSparsity`.
And a model of tf_keras (Keras 2) that comes to a verb of tfopt is handed to TFMOT itself
(https://www.tensorflow.org/model_optimization): `prune`, `cluster`, `quantize`, `strip`, `convert`.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tfopt.core.checks import as_choice
from tfopt.core.errors import (
    ExportError,
    InvalidArgumentError,
    NothingToDoError,
    UnsupportedModelError,
    first_line,
)
from tfopt.interop.models import (
    FAILURES,
    call_on,
    check_model,
    clone_of,
    layer_amounts,
    map_layers,
    selected,
    wrapped,
)
from tfopt.interop.packages import MissingPackageError as MissingPackageError
from tfopt.interop.packages import (
    clustering_wrapper,
    pruning_wrapper,
    quantization_wrapper,
    tfmot,
)
from tfopt.interop.packages import is_tf_keras_model as is_tf_keras_model
from tfopt.interop.pruning import check_amount, held, layer_schedules, mask_now, with_update_step

SCHEDULES = ("ConstantSparsity", "PolynomialDecay")
QUANTIZATIONS = ("none", "dynamic", "float16", "int8")
_INITS = {"kmeans++": "KMEANS_PLUS_PLUS", "linear": "LINEAR", "density": "DENSITY_BASED", "random": "RANDOM"}


def __getattr__(name: str) -> Any:
    """`ConstantSparsity` and `PolynomialDecay` are TFMOT's own classes, imported at first use."""
    if name in SCHEDULES:
        return getattr(tfmot().sparsity.keras, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def prune(
    model: Any,
    schedule: Callable | None = None,
    *,
    sparsity: float | Mapping[str, float] | str | None = None,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """A copy of a tf_keras model that TFMOT's `prune_low_magnitude` prunes during `fit`.

    With a schedule the result is what TFMOT gives. Without one, TFMOT's masks are computed at once and held in any
    later `fit`. `UpdatePruningStep`, which TFMOT asks the user to pass to `fit`, is added to the callbacks by the
    returned model itself. For that, only `fit` of this one object is wrapped: classes and layers stay TFMOT's, so that
    a saved file is plain TFMOT and loads in `tfmot.sparsity.keras.prune_scope()`. A loaded model is such a plain one:
    pass the callback to its `fit`. A loop over `train_on_batch` has to call it too, as with TFMOT.

    Args:
        model: a built Sequential or Functional tf_keras model, nested models allowed. It is not changed.
        schedule: `tfopt.PolynomialDecay`, `tfopt.ConstantSparsity` or any callable `step -> (prune_now, sparsity)`.
        sparsity: fraction of zeros in each kernel, in (0, 1), by default 0.5, or a dict from layer names or globs to
            fractions, which prunes these layers only. Not together with a schedule.
        include: layer names or globs to prune, nested layers by path, as `"encoder/conv1"`. All by default; TFMOT then
            raises if there is one that it does not know.
        exclude: layer names or globs to leave as they are.
        options: `sparsity_m_by_n`, `block_size` and `block_pooling_type` of `prune_low_magnitude`.

    Returns:
        A tf_keras model with TFMOT's pruning wrappers, not compiled.

    Raises:
        InvalidArgumentError: for a bad `sparsity`, `schedule`, `include` or `exclude`.
        UnsupportedModelError: for a model that TFMOT cannot prune, with TFMOT's message.
        NonFiniteError: for weights with NaN or infinity.
        NothingToDoError: if no layer is left to prune.

    Example:
        >>> import tf_keras
        >>> model = tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(8,), name="d")])
        >>> pruned = strip(prune(model, sparsity=0.75))
        >>> int((pruned.get_layer("d").kernel.numpy() == 0).sum())
        24
    """
    check_model(model)
    check_amount(schedule, sparsity)
    if wrapped(model, pruning_wrapper()):
        raise NothingToDoError(
            "A tf_keras model is pruned once.", received=f"'{model.name}', pruned", fix="Strip it first."
        )
    wrap = functools.partial(tfmot().sparsity.keras.prune_low_magnitude, **(options or {}))
    clone = clone_of(model)
    if include is None and exclude is None and not isinstance(sparsity, Mapping):
        with call_on(clone, "tfmot.sparsity.keras.prune_low_magnitude"):
            pruned = wrap(clone, schedule or held(sparsity))
    else:
        schedules = layer_schedules(clone, schedule, sparsity, include, exclude)
        with call_on(clone, "tfmot.sparsity.keras.prune_low_magnitude"):
            pruned = map_layers(clone, lambda path, layer: wrap(layer, schedules[path]) if path in schedules else layer)
    wrappers = wrapped(pruned, pruning_wrapper())
    if not any(wrapper.pruning_vars for wrapper in wrappers):
        raise NothingToDoError("A model to prune has a kernel.", received=f"'{model.name}', none that TFMOT can prune")
    if schedule is None:
        mask_now(wrappers)
    return with_update_step(pruned)


def cluster(
    model: Any,
    n_clusters: int | Mapping[str, int] = 16,
    *,
    init: str = "kmeans++",
    per_channel: bool = False,
    include: str | list[str] | None = None,
    exclude: str | list[str] | None = None,
) -> Any:
    """A copy of a tf_keras model that TFMOT's `cluster_weights` keeps clustered during `fit`.

    Args:
        model: a built Sequential or Functional tf_keras model, nested models allowed. It is not changed.
        n_clusters: at least 2; or a dict from layer names or globs to numbers, which clusters these layers only.
        init: `"kmeans++"`, `"linear"`, `"density"` or `"random"`, TFMOT's `CentroidInitialization`.
        per_channel: TFMOT's `cluster_per_channel`, for Conv2D.
        include: layer names or globs to cluster; all by default. TFMOT raises if there is one that it does not know.
        exclude: layer names or globs to leave as they are.

    Returns:
        A tf_keras model with TFMOT's clustering wrappers, not compiled. Layers in which at least one weight in
        `n_clusters` is zero keep their zeros (`preserve_sparsity`).

    Raises:
        InvalidArgumentError: for a name or glob that fits no layer.
        UnsupportedModelError: for a model that TFMOT cannot cluster, with TFMOT's message.
        NonFiniteError: for weights with NaN or infinity.
        NothingToDoError: if no layer is left to cluster, or the model is clustered already.

    Example:
        >>> import numpy as np
        >>> import tf_keras
        >>> model = tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(8,), name="d")])
        >>> clustered = strip(cluster(model, 4, init="linear"))
        >>> len(np.unique(clustered.get_layer("d").kernel)) <= 4
        True
    """
    check_model(model)
    for kind, verb in ((clustering_wrapper(), "clustered"), (pruning_wrapper(), "pruned")):
        if wrapped(model, kind):
            raise NothingToDoError(
                "TFMOT clusters a plain model.", received=f"'{model.name}', {verb}", fix="Strip it first."
            )
    clone = clone_of(model)
    amounts = layer_amounts(clone, n_clusters, "n_clusters", include, exclude)
    options = _clustering_options(init, per_channel)
    with call_on(clone, "tfmot.clustering.keras.cluster_weights"):
        clustered = map_layers(clone, lambda path, layer: _clustered(layer, amounts.get(path), options))
    if not any(wrapper.cluster_centroids for wrapper in wrapped(clustered, clustering_wrapper())):
        raise NothingToDoError(
            "A model to cluster has a kernel.", received=f"'{model.name}', none for TFMOT to cluster"
        )
    return clustered


def quantize(model: Any, include: str | list[str] | None = None, exclude: str | list[str] | None = None) -> Any:
    """A copy of a tf_keras model with TFMOT's 8-bit quantization-aware training, as `quantize_model` makes it.

    Args:
        model: a built Sequential or Functional tf_keras model without nested models. It is not changed.
        include: layer names or globs to quantize (`quantize_annotate_layer`); all by default.
        exclude: layer names or globs to leave in float.

    Returns:
        A tf_keras model, not compiled, the layers named `quant_...`.

    Raises:
        InvalidArgumentError: for a name or glob that fits no layer.
        UnsupportedModelError: for a model that TFMOT cannot quantize, with TFMOT's message.
        NonFiniteError: for weights with NaN or infinity.
        NothingToDoError: if the model is quantization-aware already or no layer is left to quantize.

    Example:
        >>> import tf_keras
        >>> model = tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(8,), name="d")])
        >>> [layer.name for layer in quantize(model).layers]
        ['quantize_layer', 'quant_d']
    """
    check_model(model)
    if is_quantized(model):
        raise NothingToDoError(
            "A model is made quantization-aware once.", received=f"'{model.name}', quantization-aware"
        )
    if wrapped(model, (pruning_wrapper(), clustering_wrapper())):
        raise UnsupportedModelError(
            "TFMOT cannot quantize its clustering and pruning wrappers.",
            received=f"'{model.name}', pruned or clustered",
            fix="Call `tfopt.strip(model)` first.",
        )
    api = tfmot().quantization.keras
    clone = clone_of(model)
    if include is None and exclude is None:
        with call_on(clone, "tfmot.quantization.keras.quantize_model"):
            return api.quantize_model(clone)
    chosen = selected(clone, include, exclude)
    if not chosen:
        raise NothingToDoError("A layer has to be left to quantize.", received=f"exclude={exclude!r}")
    annotate = api.quantize_annotate_layer
    with call_on(clone, "tfmot.quantization.keras.quantize_apply"):
        return api.quantize_apply(map_layers(clone, lambda path, layer: annotate(layer) if path in chosen else layer))


def strip(model: Any) -> Any:
    """The plain model in a tf_keras model pruned or clustered by TFMOT (`strip_pruning`, `strip_clustering`).

    Masks and clusters are applied. The input is not changed.

    Args:
        model: a tf_keras model from `prune`, `cluster` or TFMOT's own functions for these.

    Returns:
        A tf_keras model of the original's layers and weight shapes, not compiled.

    Raises:
        UnsupportedModelError: for a quantization-aware model: TFMOT has no way back from one.
        NothingToDoError: if the model holds no pruning or clustering wrapper.

    Example: see `prune`.
    """
    check_model(model)
    if is_quantized(model):
        raise UnsupportedModelError(
            "TFMOT has no strip for its quantization-aware models (tensorflow/model-optimization issue 958).",
            received=f"'{model.name}', quantization-aware",
            fix="Export it with `tfopt.export_tflite`, keep the float model, or port the model to Keras 3.",
        )
    if not wrapped(model, (pruning_wrapper(), clustering_wrapper())):
        raise NothingToDoError(
            "A model to strip holds clustering or pruning wrappers.", received=f"'{model.name}' without any"
        )
    clone = clone_of(model)
    if wrapped(model, clustering_wrapper()):
        with call_on(clone, "tfmot.clustering.keras.strip_clustering"):
            return tfmot().clustering.keras.strip_clustering(clone)
    for wrapper in wrapped(clone, pruning_wrapper()):
        wrapper.pruning_obj.weight_mask_op()
    with call_on(clone, "tfmot.sparsity.keras.strip_pruning"):
        return tfmot().sparsity.keras.strip_pruning(clone)


def convert(
    model: Any,
    quantization: str = "none",
    batch_size: int | None = 1,
    io_types: tuple[str, str] = ("float32", "float32"),
) -> bytes:
    """The .tflite file of a tf_keras model; pruning and clustering wrappers are stripped first.

    The outputs of the file keep the order of the model's.

    Args:
        model: a built Sequential or Functional tf_keras model.
        quantization: "none" (float32), "dynamic" (int8 weights) or "float16" for a float model; "int8" for a
            quantization-aware one.
        batch_size: of the file; None leaves it free.
        io_types: dtypes of inputs and outputs of an int8 file: "float32", "int8" or "uint8".

    Raises:
        InvalidArgumentError: if `quantization` is unknown or does not go with the model.
        ExportError: if the converter fails, with its message.

    Example:
        >>> import tf_keras
        >>> convert(tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(8,))]))[4:8]
        b'TFL3'
    """
    check_model(model)
    _check_quantization(model, quantization)
    if wrapped(model, (pruning_wrapper(), clustering_wrapper())):
        model = strip(model)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([_inference(model, batch_size)], model)
    if quantization != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    converter.inference_input_type, converter.inference_output_type = (tf.as_dtype(name) for name in io_types)
    return _run(converter)


def is_quantized(model: Any) -> bool:
    """True for a tf_keras model from `quantize` or TFMOT's `quantize_model`."""
    return bool(wrapped(model, quantization_wrapper()))


def _clustering_options(init: str, per_channel: bool) -> dict[str, Any]:
    """The arguments of `cluster_weights` that all layers share."""
    centroids = getattr(tfmot().clustering.keras.CentroidInitialization, _INITS[init])
    return {"cluster_centroids_init": centroids, **({"cluster_per_channel": True} if per_channel else {})}


def _clustered(layer: Any, n_clusters: int | None, options: Mapping[str, Any]) -> Any:
    """The layer in TFMOT's wrapper; as it is where nothing is wanted of it or it has no weights to train."""
    if n_clusters is None or not layer.trainable_weights:
        return layer
    sparse = _is_sparse(layer, n_clusters)
    return tfmot().clustering.keras.cluster_weights(layer, n_clusters, preserve_sparsity=sparse, **options)


def _is_sparse(layer: Any, n_clusters: int) -> bool:
    """True where zeros are at least the share of one cluster of the layer's kernels."""
    kernels = [weight.numpy() for weight in layer.trainable_weights if len(weight.shape) > 1]
    zeros, size = sum(int((kernel == 0).sum()) for kernel in kernels), sum(kernel.size for kernel in kernels)
    return n_clusters > 2 and size > 0 and zeros * n_clusters >= size


def _inference(model: Any, batch_size: int | None) -> Any:
    """A batch through the model, as a concrete function."""

    @tf.function(autograph=False)
    def infer(*inputs: Any) -> dict[str, Any]:
        results = tf.nest.flatten(model(tf.nest.pack_sequence_as(model.input, inputs), training=False))
        return {f"output_{index:03d}": result for index, result in enumerate(results)}

    specs = [tf.TensorSpec((batch_size, *tensor.shape[1:]), tensor.dtype, name=tensor.name) for tensor in model.inputs]
    return infer.get_concrete_function(*specs)


def _run(converter: Any) -> bytes:
    """The converter's result; its failure as an `ExportError`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Statistics for quantized inputs")  # they are in the model
            return converter.convert()
    except (_converter_error(), *FAILURES) as error:
        raise ExportError(
            "The TFLite converter takes a model of the operations that LiteRT has.", received=first_line(error)
        ) from error


def _converter_error() -> type[Exception]:
    return importlib.import_module("tensorflow.lite.python.convert_phase").ConverterError


def _check_quantization(model: Any, quantization: str) -> None:
    as_choice("quantization", quantization, QUANTIZATIONS)
    aware = is_quantized(model)
    if aware != (quantization == "int8"):
        raise InvalidArgumentError(
            "On tf_keras, 'int8' goes with a quantization-aware model, and with no other.",
            received=f"'{quantization}' and a {'quantization-aware' if aware else 'float'} model",
            fix="Pass 'int8'." if aware else "Call `tfopt.quantize(model)` and train it first.",
        )
