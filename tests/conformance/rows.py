"""What a row of the table holds: the classes, small models of them, and what each verb makes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import layers as kl

IMAGE, SEQUENCE, VECTOR, VOLUME = (6, 6, 4), (8, 4), (4,), (4, 4, 4, 4)
NOTHING = "its layers give its outputs"  # said of a model that has no channels which could go
SIXTEEN = "LiteRT has no integer operation for it with 16-bit activations"
NO_INTEGERS = "LiteRT has no integer version"


@dataclass(frozen=True)
class File:
    """How a .tflite file computes the layer.

    Args:
        floats: the operations that compute in float, sorted, as "ADD*2 MUL".
        reason: what `quantize` says of them; a part of its text.
        steps: how far the file may be from the quantized model: the mean difference, in steps of the output.
    """

    floats: str = ""
    reason: str = ""
    steps: float = 1.0


@dataclass(frozen=True)
class No:
    """What cannot be done, and a part of what the verb says of it."""

    reason: str


Part = Callable[[int], "tuple[keras.KerasTensor, keras.KerasTensor]"]


@dataclass(frozen=True)
class Row:
    """One or more classes in a small model, and what the verbs make of it.

    Args:
        covers: the classes of layers and ops.
        parts: each makes an input and an output of the model. Layers before the tested ones are named "front...", the
            last one "back...".
        kernels: the weights of the tested layers that `prune` masks and `cluster` shares, by path inside the layer.
        channels: why channels stay, those that the layers read or their own; None where none stay.
        int8, int16x8: how the file computes the layers, or why there is none.
        trains: why a training step leaves some weights as they are; None where it reaches all.
        opened: `quantize` opens the layers into those that they are made of, and `strip` leaves them so.
        note: for the page.
        name: for the page and the names of the tests; by default the names of the classes.
    """

    covers: tuple[type, ...]
    parts: Part | tuple[Part, ...]
    kernels: tuple[str, ...] = ()
    channels: No | None = None
    int8: File | No = field(default_factory=File)
    int16x8: File | No = field(default_factory=File)
    trains: No | None = None
    opened: bool = False
    note: str = ""
    name: str = ""

    @property
    def title(self) -> str:
        return self.name or ", ".join(cls.__name__ for cls in self.covers)

    def build(self) -> keras.Model:
        """One model of all parts, with several inputs and outputs."""
        if callable(self.parts):
            return keras.Model(*self.parts(0))
        pairs = [part(i) for i, part in enumerate(self.parts)]
        return keras.Model({x.name: x for x, _ in pairs}, [y for _, y in pairs])


def no(reason: str) -> No:
    return No(reason)


def unknown(name: str) -> No:
    """Channels that a layer reads stay where tfopt does not know the layer."""
    return no(f"tfopt does not know {name}")


def refused(op: str) -> No:
    """The converter makes no file with this op of TensorFlow."""
    return no(f"'tf.{op}' op is neither a custom op nor a flex op")


def floats(ops: str, reason: str = "", steps: float = 1.0) -> File:
    return File(ops, reason, steps)


def within(steps: float) -> File:
    """Integers only, further from the model: its averages are rounded to the steps of what is averaged."""
    return File(steps=steps)


def both(cell: File | No) -> dict[str, File | No]:
    """The same cell for int8 and int16x8."""
    return {"int8": cell, "int16x8": cell}


Call = Callable[..., object]


def front(x, name: str, units: int = 4):
    """A layer whose channels the tested layer reads: a convolution, or a matrix product over a vector."""
    if len(x.shape) == 2:
        return kl.Dense(units, name=name)(x)
    convolution = kl.Conv1D if len(x.shape) == 3 else kl.Conv2D
    return convolution(units, 3, padding="same", name=name)(x)


def back(y, i: int):
    return kl.Dense(3, name=f"back_{i}")(kl.Flatten()(y) if len(y.shape) > 2 else y)


def between(call: Call, shape: tuple[int, ...] = IMAGE, units: int = 4) -> Part:
    """`call` of the output of a layer with kernels, and such a layer behind it."""

    def part(i: int):
        flat = (shape[0], shape[1] * shape[2], shape[3]) if len(shape) == 4 else shape
        inputs = keras.Input(flat, name=f"input_{i}")
        x = front(inputs, f"front_{i}", units)
        return inputs, back(call(kl.Reshape(shape)(x) if len(shape) == 4 else x), i)

    return part


def all_between(*calls: Call, shape: tuple[int, ...] = IMAGE) -> tuple[Part, ...]:
    """The same for several, each with an input and an output of its own."""
    return tuple(between(call, shape) for call in calls)


def layer(cls: type, *args, shape: tuple[int, ...] = IMAGE, **config) -> Part:
    """A layer of this class between two layers with kernels."""
    return between(lambda x: cls(*args, **config)(x), shape)


def merging(call: Call, shape: tuple[int, ...] = IMAGE) -> Part:
    """`call` of the outputs of two layers with kernels, and such a layer behind it."""

    def part(i: int):
        inputs = keras.Input(shape, name=f"input_{i}")
        return inputs, back(call(front(inputs, f"front_{i}_a"), front(inputs, f"front_{i}_b")), i)

    return part


def reading(call: Call, shape: tuple[int, ...], dtype: str | None = None) -> Part:
    """`call` of an input, and a layer with kernels behind it."""

    def part(i: int):
        inputs = keras.Input(shape, dtype=dtype, name=f"input_{i}")
        return inputs, back(call(inputs), i)

    return part


def randomized(model: keras.Model) -> keras.Model:
    """The model with weights away from their start values, as those of batch normalization are."""
    generator = np.random.default_rng(7)
    for weight in model.weights:
        if weight.dtype != "float32":
            continue
        if weight.path.endswith(("gamma", "scale", "variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif len(weight.shape) == 1:
            weight.assign(generator.normal(0, 0.2, weight.shape))
    return model


def inputs_for(model: keras.Model, samples: int = 16):
    """An array for the model's input, or a dict of arrays for several."""
    generator = np.random.default_rng(3)
    arrays = {}
    for tensor in model.inputs:
        shape = (samples, *tensor.shape[1:])
        if tensor.dtype == "string":
            arrays[tensor.name] = generator.choice(["a", "b", "c"], shape).astype(object)
        elif "int" in tensor.dtype:
            arrays[tensor.name] = generator.integers(0, 10, shape).astype(tensor.dtype)
        else:
            arrays[tensor.name] = generator.normal(size=shape).astype("float32")
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))
