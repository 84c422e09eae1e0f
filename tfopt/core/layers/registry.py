"""What each Keras layer and op is: one registry, open to users' own layers by one decorator.

An entry says which weights of a layer are kernels (to prune, quantize, cluster) and how its output behaves in an 8-bit
file. A layer without an entry is looked into: its sublayers have entries of their own, as the cell of an LSTM has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import application_layer, children, op_class
from tfopt.core.layers.channel_rules import per_channel
from tfopt.core.layers.channels import register_channels


class Output(Enum):
    """How the output of a layer is quantized."""

    RANGE = "range"  # gets a range of its own
    SAME = "same"  # moves or selects values: input and output share one range
    FIXED = "fixed"  # the runtime fixes the range, as [0, 1] for softmax
    FLOAT = "float"  # stays float


@dataclass(frozen=True)
class Entry:
    """What tfopt knows of a layer class.

    Args:
        prunable: attributes that hold kernels to prune or cluster.
        kernels: attribute of a kernel to quantize -> its channel axes, () for one range over the whole tensor.
        output: how the output is quantized; None where the catalog does not know.
        reason: why it stays float, shown to the user.
    """

    prunable: tuple[str, ...] = ()
    kernels: tuple[tuple[str, tuple[int, ...]], ...] = ()
    output: Output | None = None
    reason: str = ""


@dataclass(frozen=True)
class KernelAxes:
    """Where the features of a layer lie in one of its prunable kernels.

    Args:
        units: axes that count the units (neurons, filters) that the kernel computes, negative.
        inputs: axis that counts the features of the layer's input; None if they do not lie along one axis.
        channels: each unit is one channel of the layer's output.
    """

    units: tuple[int, ...] = (-1,)
    inputs: int | None = None
    channels: bool = True


_ENTRIES: dict[type, Entry] = {}
_AXES: dict[type, KernelAxes] = {}
_ACTIVATIONS: dict[str, Output] = {}


def register_layer(
    *,
    prunable: tuple[str, ...] = (),
    kernels: dict[str, tuple[int, ...]] | None = None,
    output: str | None = None,
    reason: str = "",
    channels: str | Callable | None = None,
) -> Callable[[type], type]:
    """Class decorator: makes a layer of your own known to tfopt.

    Args:
        prunable: names of the weight attributes that `prune` may mask.
        kernels: name of a weight attribute that `quantize` turns into integers -> its channel axes, `()` for one
            range over the whole weight, `(-1,)` for one range for each index of the last axis.
        output: `"range"` (has its own 8-bit range), `"same"` (values are moved, not computed: input and output share
            a range), `"fixed"` (the runtime fixes it) or `"float"` (stays float; say why in `reason`).
        reason: shown to the user where the layer stays float.
        channels: what `prune(pattern="channel")` and `shrink` may do. `"same"`: each channel (index of the last axis)
            of the output comes from that of the input alone; every weight whose last axis has as many entries loses
            those of removed channels, and `build` has to take the number of channels from its input. Or a function
            `(context, *inputs) -> Channels` like those in `tfopt/core/layers`. Without it, channels that it reads stay.

    Returns:
        The decorator; it returns the class unchanged.

    Example:
        >>> @register_layer(prunable=("matrix",), kernels={"matrix": ()}, output="range")
        ... class Project(keras.layers.Layer):
        ...     pass
        >>> entry_of(Project()).prunable
        ('matrix',)
    """

    def decorate(cls: type) -> type:
        known = None if output is None else Output(output)
        _ENTRIES[cls] = Entry(tuple(prunable), tuple((kernels or {}).items()), known, reason)
        if channels is not None:
            register_channels(cls)(channels if callable(channels) else per_channel)
        return cls

    if isinstance(channels, str) and channels != "same":
        raise InvalidArgumentError("`channels` is 'same' or a function.", received=repr(channels))

    return decorate


def entry_of(op: Any) -> Entry | None:
    """The entry of a layer or op, inherited along its classes; None if there is none."""
    return next((_ENTRIES[cls] for cls in type(op).__mro__ if cls in _ENTRIES), None)


def prunable_weights(layer: kl.Layer) -> dict[str, keras.Variable]:
    """Kernels of a layer and, where it has no entry, of its sublayers: `{"kernel": ..., "cell/kernel": ...}`."""
    entry = entry_of(layer)
    if entry is not None:
        return {name: getattr(layer, name) for name in entry.prunable}
    found = {}
    for child in children(layer):
        found.update({f"{child.name}/{name}": weight for name, weight in prunable_weights(child).items()})
    return found


def kernel_axes(layer: kl.Layer, name: str) -> KernelAxes:
    """Axes of a kernel by its name in `prunable_weights(layer)`; the last one counts the units if nothing is known.

    Example:
        >>> kernel_axes(kl.Conv2DTranspose(8, 3), "kernel")
        KernelAxes(units=(-2,), inputs=-1, channels=True)
    """
    child_name, _, rest = name.partition("/")
    if rest:
        return kernel_axes(next(child for child in children(layer) if child.name == child_name), rest)
    if isinstance(layer, kl.EinsumDense):
        return KernelAxes(_einsum_units(layer.equation), None, channels=False)
    known = next((_AXES[cls] for cls in type(layer).__mro__ if cls in _AXES), KernelAxes())
    return known if getattr(layer, "groups", 1) == 1 else replace(known, inputs=None)


def range_axes(layer: kl.Layer, name: str) -> tuple[int, ...]:
    """Axes of a prunable kernel for whose indices `quantize` has a range each; () for one range over the whole kernel.

    Example:
        >>> range_axes(kl.Conv2D(8, 3), "kernel"), range_axes(kl.Dense(8), "kernel")
        ((-1,), ())
    """
    child_name, _, rest = name.partition("/")
    if rest:
        return range_axes(next(child for child in children(layer) if child.name == child_name), rest)
    entry = entry_of(layer)
    return dict(entry.kernels).get(name, ()) if entry else ()


def _einsum_units(equation: str) -> tuple[int, ...]:
    """Axes of the kernel that are axes of the output too."""
    operands, output = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    return tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter in output)


def channel_axis(layer: kl.Layer) -> int:
    """The axis of a layer's input and output that counts channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def is_per_channel(op: keras.Operation) -> bool:
    """True if channel i of the output depends on channel i of the input alone, and has its shape."""
    name = getattr(getattr(op, "activation", None), "__name__", None)
    return isinstance(op, _PER_CHANNEL) and name not in ("softmax", "log_softmax")


def activation_output(name: str) -> Output | None:
    """How the output of the activation function `name` is quantized; None for a function unknown to the catalog."""
    return _ACTIVATIONS.get(name)


def layers_named(*names: str) -> list[type]:
    """The classes of `keras.layers` of these names that this version of Keras has."""
    return [getattr(kl, name) for name in names if hasattr(kl, name)]


def runs_in_16_bits(op: Any, tensors: int = 2) -> bool:
    """True if LiteRT and its converter have an integer operation with 16-bit activations for what `op` computes.

    Args:
        op: a layer, an op, or an activation function.
        tensors: how many tensors it reads; the converter knows no 16-bit constants.
    """
    if not isinstance(op, keras.Operation):
        return getattr(op, "__name__", "") in _ACTIVATIONS_IN_16_BITS
    if isinstance(op, kl.Activation):
        return runs_in_16_bits(op.activation)
    if isinstance(op, kl.ReLU):
        return op.threshold == 0 and op.negative_slope == 0 and op.max_value in (None, 6)
    return isinstance(op, _IN_16_BITS) or (isinstance(op, _ARITHMETIC_OPS) and tensors > 1)


def _enter(classes, **facts) -> None:
    for cls in classes:
        _ENTRIES[cls] = Entry(**facts)


def _kernel(name: str, axes: tuple[int, ...]) -> dict:
    return {"kernels": ((name, axes),), "output": Output.RANGE}


_ACTIVATIONS.update(
    dict.fromkeys(("linear", "relu", "relu6", "leaky_relu", "elu", "silu", "swish", "gelu", "hard_silu"), Output.RANGE)
)
_ACTIVATIONS.update(dict.fromkeys(("hard_swish", "hard_sigmoid", "hard_tanh", "exponential"), Output.RANGE))
_ACTIVATIONS.update(dict.fromkeys(("sigmoid", "tanh", "softmax", "log_softmax"), Output.FIXED))
_ACTIVATIONS.update(dict.fromkeys(("celu", "selu", "softplus", "softsign", "squareplus", "mish", "glu"), Output.FLOAT))
_ACTIVATIONS.update(dict.fromkeys(("log_sigmoid", "tanh_shrink", "hard_shrink", "soft_shrink"), Output.FLOAT))
_ACTIVATIONS.update(dict.fromkeys(("sparse_plus", "sparse_sigmoid", "sparsemax", "threshold"), Output.FLOAT))

# Kernels. Channel axes as LiteRT's integer kernels want them: convolutions one range for each output channel,
# matrix products one for all (https://ai.google.dev/edge/litert/models/quantization_spec).
_enter((kl.Conv1D, kl.Conv2D), prunable=("kernel",), **_kernel("kernel", (-1,)))
_enter((kl.Conv1DTranspose, kl.Conv2DTranspose), prunable=("kernel",), **_kernel("kernel", (-2,)))
_enter(
    (kl.Conv3D, kl.Conv3DTranspose),
    prunable=("kernel",),
    output=Output.FLOAT,
    reason="LiteRT has no integer 3-D convolution",
)
_enter((kl.DepthwiseConv1D, kl.DepthwiseConv2D), **_kernel("kernel", (-2, -1)))
_enter(
    (kl.SeparableConv1D, kl.SeparableConv2D),
    prunable=("pointwise_kernel",),
    kernels=(("depthwise_kernel", (-2, -1)), ("pointwise_kernel", (-1,))),
    output=Output.RANGE,
)
_enter((kl.Dense,), prunable=("kernel",), **_kernel("kernel", ()))
_enter((kl.EinsumDense,), prunable=("kernel",), **_kernel("kernel", ()))
_enter((kl.Embedding,), prunable=("embeddings",), **_kernel("embeddings", ()))
_enter((kl.LSTMCell, kl.GRUCell, kl.SimpleRNNCell), prunable=("kernel", "recurrent_kernel"))
_enter(
    (kl.ConvLSTM1D, kl.ConvLSTM2D, kl.ConvLSTM3D),
    output=Output.FLOAT,
    reason="its convolutions run inside a loop; TimeDistributed(Conv2D) and an LSTM behind it run as integers",
)

# Values are moved or selected, or averaged by an integer kernel that asks for one range on both sides.
_enter(
    (
        kl.InputLayer,
        kl.MaxPooling1D,
        kl.MaxPooling2D,
        kl.MaxPooling3D,
        kl.GlobalMaxPooling1D,
        kl.GlobalMaxPooling2D,
        kl.GlobalMaxPooling3D,
        kl.Flatten,
        kl.Reshape,
        kl.Permute,
        kl.RepeatVector,
        kl.Cropping1D,
        kl.Cropping2D,
        kl.Cropping3D,
        kl.ZeroPadding1D,
        kl.ZeroPadding2D,
        kl.ZeroPadding3D,
        kl.AveragePooling1D,
        kl.AveragePooling2D,
        kl.AveragePooling3D,
        kl.Resizing,
        kl.UpSampling1D,
        kl.UpSampling2D,
        kl.UpSampling3D,
        kl.Identity,
        kl.Dropout,
        kl.SpatialDropout1D,
        kl.SpatialDropout2D,
        kl.SpatialDropout3D,
        kl.AlphaDropout,
        kl.GaussianDropout,
        kl.GaussianNoise,
        kl.ActivityRegularization,
        kl.Masking,
        kl.CenterCrop,
        *map(op_class, ("GetItem", "Reshape", "Squeeze", "ExpandDims", "Transpose", "Pad")),
        *map(op_class, ("Split", "Tile", "Repeat", "Swapaxes", "Moveaxis", "Flip", "Take", "Ravel", "Max", "Min")),
        *map(op_class, ("MaxPool", "AveragePool", "BroadcastTo")),
    ),
    output=Output.SAME,
)
_enter(
    layers_named("AdaptiveAveragePooling1D", "AdaptiveAveragePooling2D", "AdaptiveAveragePooling3D"), output=Output.SAME
)
_enter(layers_named("AdaptiveMaxPooling1D", "AdaptiveMaxPooling2D", "AdaptiveMaxPooling3D"), output=Output.SAME)

# Preprocessing that changes nothing outside of training, or crops.
_enter(
    layers_named(
        *("AugMix", "CutMix", "MixUp", "RandAugment", "RandomBrightness", "RandomColorDegeneration"),
        *("RandomColorJitter", "RandomContrast", "RandomCrop", "RandomElasticTransform", "RandomErasing", "RandomFlip"),
        *("RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness", "RandomShear"),
        *("RandomTranslation", "RandomZoom"),
    ),
    output=Output.SAME,
)

# Values are computed.
_enter(
    (
        kl.Add,
        kl.Subtract,
        kl.Multiply,
        kl.Maximum,
        kl.Minimum,
        kl.Average,
        kl.Concatenate,
        kl.GlobalAveragePooling1D,
        kl.GlobalAveragePooling2D,
        kl.GlobalAveragePooling3D,
        kl.Rescaling,
        kl.Normalization,
        kl.BatchNormalization,
        kl.LayerNormalization,
        kl.GroupNormalization,
        kl.RMSNormalization,
        kl.Activation,
        kl.ReLU,
        kl.LeakyReLU,
        kl.PReLU,
        kl.ELU,
        kl.Dot,
        *map(op_class, ("Add", "Subtract", "Multiply", "Maximum", "Minimum", "Concatenate", "Mean", "Sum")),
        *map(op_class, ("Divide", "TrueDivide", "Absolute", "Sqrt", "Rsqrt", "Exp", "Clip", "Matmul", "Einsum")),
        *map(op_class, ("Relu", "Relu6", "LeakyRelu", "Silu", "HardSilu", "Gelu", "Cast")),
    ),
    output=Output.RANGE,
)
_enter((kl.Softmax, *map(op_class, ("Softmax", "Sigmoid", "Tanh"))), output=Output.FIXED)

# Layers that `keras.applications` keeps to itself.
_enter((application_layer("LayerScale"),), output=Output.RANGE)
_enter((application_layer("StochasticDepth"),), output=Output.SAME)
_enter(
    (application_layer("CustomScaleLayer"),),
    output=Output.FLOAT,
    reason="it scales and adds, with no range between the two",
)

# What runs in float, and why.
_FLOAT = {
    "LiteRT's converter leaves it in float; write it as `layers.Activation('hard_sigmoid')`": (
        op_class("HardSigmoid"),
    ),
    "LiteRT's converter leaves it in float; write it as `layers.Activation('elu')`": (op_class("Elu"),),
    "LiteRT's converter leaves it in float; write it as `0 - x`": (op_class("Negative"),),
    "LiteRT's converter leaves it in float; write it as `x * x`": (op_class("Square"),),
    "LiteRT's converter gives all parts the range of the first; write it with `expand_dims` and `concatenate`": (
        op_class("Stack"),
    ),
    "the logarithm of an 8-bit value near zero would be far off": (op_class("Log"),),
    "LiteRT has no integer version": map(op_class, ("Var", "Std", "Normalize", "Selu", "Celu", "Softplus", "Softsign")),
    "preprocessing of images that LiteRT has no integers for": layers_named(
        *("AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "Solarization"),
    ),
    "preprocessing of sound that LiteRT has no integers for": layers_named("MelSpectrogram", "STFTSpectrogram"),
    "it makes indices or encodings of raw data, before there is anything to quantize": layers_named(
        *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup", "StringLookup"),
        *("TextVectorization", "MaxNumBoundingBoxes"),
    ),
    "it runs code of another framework": layers_named("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    "what its function does cannot be seen; write it with `keras.ops`, or as a layer with `@tfopt.register_layer`": (
        kl.Lambda,
    ),
}
for _reason, _classes in _FLOAT.items():
    _enter(_classes, output=Output.FLOAT, reason=_reason)

# Where the features lie in a kernel.
_AXES.update(dict.fromkeys((kl.Dense, kl.Conv1D, kl.Conv2D, kl.Conv3D), KernelAxes((-1,), -2)))
_AXES.update(dict.fromkeys((kl.Conv1DTranspose, kl.Conv2DTranspose, kl.Conv3DTranspose), KernelAxes((-2,), -1)))
_AXES[kl.Embedding] = KernelAxes((-1,), None, channels=False)  # its weights are looked up, not multiplied

_PER_CHANNEL = (
    kl.BatchNormalization,
    kl.Activation,
    kl.ReLU,
    kl.LeakyReLU,
    kl.PReLU,
    kl.ELU,
    kl.Identity,
    kl.Dropout,
    kl.SpatialDropout1D,
    kl.SpatialDropout2D,
    kl.SpatialDropout3D,
    kl.AlphaDropout,
    kl.GaussianDropout,
    kl.GaussianNoise,
    *map(op_class, ("Relu", "Relu6", "LeakyRelu", "Silu", "HardSilu", "HardSigmoid", "Gelu", "Sigmoid", "Tanh")),
)

# With 16-bit activations. Found by converting and running each with LiteRT 2.3 and the converter of TensorFlow 2.21.
_ACTIVATIONS_IN_16_BITS = ("linear", "relu", "relu6", "leaky_relu", "silu", "swish", "sigmoid", "tanh", "softmax")
_ARITHMETIC_OPS = tuple(map(op_class, ("Add", "Subtract", "Multiply", "Maximum", "Minimum")))
_IN_16_BITS = (
    kl.InputLayer,
    kl.Conv1D,
    kl.Conv2D,
    kl.Conv2DTranspose,
    kl.DepthwiseConv1D,
    kl.DepthwiseConv2D,
    kl.Dense,
    kl.EinsumDense,
    kl.Embedding,
    kl.MaxPooling1D,
    kl.MaxPooling2D,
    kl.AveragePooling1D,
    kl.AveragePooling2D,
    kl.GlobalMaxPooling1D,
    kl.GlobalMaxPooling2D,
    kl.GlobalAveragePooling1D,
    kl.GlobalAveragePooling2D,
    kl.Flatten,
    kl.Reshape,
    kl.Permute,
    kl.Cropping1D,
    kl.Cropping2D,
    kl.ZeroPadding1D,
    kl.ZeroPadding2D,
    kl.Identity,
    kl.Dropout,
    kl.SpatialDropout1D,
    kl.SpatialDropout2D,
    kl.AlphaDropout,
    kl.GaussianDropout,
    kl.GaussianNoise,
    kl.ActivityRegularization,
    kl.Add,
    kl.Subtract,
    kl.Multiply,
    kl.Maximum,
    kl.Minimum,
    kl.Rescaling,
    kl.Normalization,
    kl.BatchNormalization,
    kl.LeakyReLU,
    kl.Softmax,
    *map(op_class, ("GetItem", "Reshape", "Squeeze", "ExpandDims", "Transpose", "Pad", "Mean")),
    *map(op_class, ("Relu", "Relu6", "LeakyRelu", "Silu", "Softmax", "Sigmoid", "Tanh")),
)
