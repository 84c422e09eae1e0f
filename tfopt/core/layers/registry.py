"""What each Keras layer and op is: one record a class, open to users' own layers by one decorator.

A record says which weights of a layer are kernels (to prune, quantize, cluster), how its output behaves in an 8-bit
file, how it passes channels on and how many multiply-accumulates it does. The files beside this one enter the classes
of Keras, one file a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import keras
from keras import layers as kl

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import children
from tfopt.core.layers.channels import per_channel

Shape = tuple[int | None, ...]
ChannelRule = Callable[..., Any]  # (context, *inputs, **arguments of the call) -> `Channels` of the outputs
MacsRule = Callable[[Any, list[Shape], list[Shape]], int]  # (op, input shapes, output shapes) -> MACs of one sample


class Output(Enum):
    """How the output of a layer is quantized."""

    RANGE = "range"  # gets a range of its own
    SAME = "same"  # moves or selects values: input and output share one range
    FIXED = "fixed"  # the runtime fixes the range, as [0, 1] for softmax
    FLOAT = "float"  # stays float


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


@dataclass(frozen=True, eq=False)
class Record:
    """What tfopt knows of a layer or op class.

    Args:
        prunable: attributes that hold kernels to prune or cluster; None for those of the layers inside it.
        axes: where features lie in a prunable kernel, or a function of the layer that says so.
        kernels: attribute of a kernel to quantize -> its channel axes, () for one range over the whole tensor.
        output: how the output is quantized; None where the layer computes in several steps, or nobody said.
        reason: why it stays float, shown to the user.
        in_16_bits: LiteRT and its converter have an integer operation with 16-bit activations for it; or a function
            `(op, number of tensors that it reads)` that says so.
        per_channel: channel i of the output depends on channel i of the input alone, and has its shape; or a function
            of the layer that says so.
        channels: how it passes channels on; None if that is unknown, and channels that it reads stay.
        macs: its multiply-accumulates; None for none, or for an unknown number (see `layer_macs`).
        computes_as: the parent class whose maths it has, for a class with facts of its own; None for its own maths.
        of_subclasses: the record holds for each subclass, whatever it computes: it is a base class whose rules look
            at what the subclass does.
    """

    prunable: tuple[str, ...] | None = None
    axes: KernelAxes | Callable[[Any], KernelAxes] = KernelAxes()
    kernels: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    output: Output | None = None
    reason: str = ""
    in_16_bits: bool | Callable[[Any, int], bool] = False
    per_channel: bool | Callable[[Any], bool] = False
    channels: ChannelRule | None = None
    macs: MacsRule | None = None
    computes_as: type | None = None
    of_subclasses: bool = False


_RECORDS: dict[type, Record] = {}


def enter(record: Record, *classes: type) -> None:
    """Makes `record` that of layer or op classes."""
    _RECORDS.update(dict.fromkeys(classes, record))


# What a subclass may override and still compute what its parent computes: how it is made, saved and shown.
_NOT_MATHS = {
    *("__init__", "__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__"),
    *("__annotations__", "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__"),
    *("__orig_bases__", "__parameters__", "__repr__", "__str__", "__abstractmethods__", "_abc_impl"),
    *("get_config", "from_config", "get_build_config", "build_from_config"),
    *("save_own_variables", "load_own_variables", "save_assets", "load_assets"),
}


def known_class(cls: type) -> type | None:
    """The class whose maths `cls` has; None for an unknown class.

    It is the class itself, or the nearest parent with a record, as long as `cls` overrides nothing of it but how a
    layer is made, saved and shown. A subclass that overrides more, as `call` or `build`, has maths of its own.

    Example:
        >>> class Wide(kl.Dense):
        ...     def __init__(self, **kwargs):
        ...         super().__init__(1024, **kwargs)
        >>> class Squared(kl.Dense):
        ...     def call(self, inputs):
        ...         return super().call(inputs) ** 2
        >>> known_class(Wide) is kl.Dense, known_class(Squared)
        (True, None)
    """
    entered = _entered_class(cls)
    return None if entered is None else _RECORDS[entered].computes_as or entered


def _entered_class(cls: type) -> type | None:
    """The class whose record holds for `cls`; None for an unknown class."""
    for place, base in enumerate(cls.__mro__):
        if base in _RECORDS:
            inherits = _RECORDS[base].of_subclasses or not _overrides(cls.__mro__[:place], base)
            return base if inherits else None
    return None


def _overrides(classes: tuple[type, ...], base: type) -> bool:
    """True if one of the classes defines anew what `base` computes with."""
    own = {name for cls in classes for name in vars(cls)} - _NOT_MATHS
    return any(hasattr(base, name) for name in own)


def record_of(op: Any) -> Record | None:
    """The record of a layer or op; None if its class is unknown."""
    cls = _entered_class(type(op))
    return None if cls is None else _RECORDS[cls]


def add_facts(cls: type, **facts: Any) -> None:
    """Enters `cls` with facts of its own, beside those of the class that it inherits its maths from."""
    entered = _entered_class(cls)
    if entered is None:
        enter(Record(**facts), cls)
    else:
        parent = known_class(cls) if entered is not cls else _RECORDS[cls].computes_as
        enter(replace(_RECORDS[entered], computes_as=parent, of_subclasses=False, **facts), cls)


def register_layer(
    *,
    prunable: tuple[str, ...] = (),
    kernels: dict[str, tuple[int, ...]] | None = None,
    output: str | None = None,
    reason: str = "",
    channels: str | Callable | None = None,
    macs: Callable | None = None,
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
        macs: the multiply-accumulates of one sample, a function `(layer, input_shapes, output_shapes) -> int`, as
            `register_macs` takes it.

    Returns:
        The decorator; it returns the class unchanged.

    Raises:
        InvalidArgumentError: `channels` is another string than "same".

    Example:
        >>> @register_layer(prunable=("matrix",), kernels={"matrix": ()}, output="range")
        ... class Project(keras.layers.Layer):
        ...     pass
        >>> record_of(Project()).prunable
        ('matrix',)
    """
    if isinstance(channels, str) and channels != "same":
        raise InvalidArgumentError(
            "`channels` must be 'same' or a function.",
            received=repr(channels),
            fix="Leave it out if the layer mixes channels.",
        )
    rules = {"channels": per_channel if channels == "same" else channels, "macs": macs}
    facts = {
        "prunable": tuple(prunable),
        "kernels": dict(kernels or {}),
        "output": None if output is None else Output(output),
        "reason": reason,
        **{name: rule for name, rule in rules.items() if rule is not None},
    }

    def decorate(cls: type) -> type:
        add_facts(cls, **facts)
        return cls

    return decorate


def prunable_weights(layer: kl.Layer) -> dict[str, keras.Variable]:
    """Kernels of a layer and, where its record names none, of its sublayers: `{"kernel": ..., "cell/kernel": ...}`."""
    record = record_of(layer)
    if record is not None and record.prunable is not None:
        return {name: getattr(layer, name) for name in record.prunable} if layer.built else {}
    found = {}
    for child_name, child in _named_children(layer).items():
        found.update({f"{child_name}/{name}": weight for name, weight in prunable_weights(child).items()})
    return found


def _named_children(layer: kl.Layer) -> dict[str, kl.Layer]:
    """The layers directly inside a layer by name; one of a name that is taken has a number behind it."""
    named: dict[str, kl.Layer] = {}
    for child in children(layer):
        name, number = child.name, 1
        while name in named:
            name, number = f"{child.name}_{number}", number + 1
        named[name] = child
    return named


def kernel_axes(layer: kl.Layer, name: str) -> KernelAxes:
    """Axes of a kernel by its name in `prunable_weights(layer)`; the last one counts the units if nothing is known.

    Example:
        >>> kernel_axes(kl.Conv2DTranspose(8, 3), "kernel")
        KernelAxes(units=(-2,), inputs=-1, channels=True)
    """
    holder, _ = _holder(layer, name)
    record = record_of(holder) or Record()
    return record.axes if isinstance(record.axes, KernelAxes) else record.axes(holder)


def range_axes(layer: kl.Layer, name: str) -> tuple[int, ...]:
    """Axes of a prunable kernel for whose indices `quantize` has a range each; () for one range over the whole kernel.

    Example:
        >>> range_axes(kl.Conv2D(8, 3), "kernel"), range_axes(kl.Dense(8), "kernel")
        ((-1,), ())
    """
    holder, attribute = _holder(layer, name)
    record = record_of(holder)
    return record.kernels.get(attribute, ()) if record else ()


def _holder(layer: kl.Layer, name: str) -> tuple[kl.Layer, str]:
    """The layer, inside `layer` or itself, that holds a kernel, and the name of the attribute there."""
    child_name, _, rest = name.partition("/")
    if not rest:
        return layer, name
    return _holder(_named_children(layer)[child_name], rest)


def rule_of(op: Any) -> ChannelRule | None:
    """How a layer or op passes channels on; None if that is unknown."""
    record = record_of(op)
    return record.channels if record else None


def is_per_channel(op: keras.Operation) -> bool:
    """True if channel i of the output depends on channel i of the input alone, and has its shape."""
    fact = getattr(record_of(op), "per_channel", False)
    return fact(op) if callable(fact) else fact


def runs_in_16_bits(op: keras.Operation, tensors: int = 2) -> bool:
    """True if LiteRT and its converter have an integer operation with 16-bit activations for what `op` computes.

    Args:
        op: a layer or an op.
        tensors: how many tensors it reads.
    """
    fact = getattr(record_of(op), "in_16_bits", False)
    return fact(op, tensors) if callable(fact) else fact


def inherits_macs(cls: type) -> bool:
    """True if a parent of a class multiplies, whether or not the class itself computes something else."""
    return any(base in _RECORDS and _RECORDS[base].macs is not None for base in cls.__mro__[1:])


def channel_axis(layer: kl.Layer) -> int:
    """The axis of a layer's input and output that counts channels."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def layers_named(*names: str) -> list[type]:
    """The classes of `keras.layers` of these names that this version of Keras has."""
    return [getattr(kl, name) for name in names if hasattr(kl, name)]
