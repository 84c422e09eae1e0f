"""TFMOT's quantized tf_keras model brought to the state of ours, to compare the two."""

from __future__ import annotations

import numpy as np


def set_weights(theirs, ours):
    """The weights of a float Keras 3 model into a float tf_keras model of the same layer names."""
    for layer in ours.layers:
        theirs.get_layer(layer.name).set_weights(layer.get_weights())


def set_ranges(theirs, ours):
    """Our activation ranges into TFMOT's variables."""
    for name, weights in ranges(theirs).items():
        mine = by_layer(ours)[name.split("/")[0]][name.split("/")[1]].bounds()
        for weight, bound in zip(weights, mine, strict=True):
            weight.assign(bound)


def ranges(theirs):
    """`"layer/output"` or `"layer/pre_activation"` -> TFMOT's variables (min, max)."""
    found = {}
    for layer in theirs.layers:
        name = layer.name.removeprefix("quant_")
        name = "image" if name.startswith("quantize_layer") else name
        for weight in layer.weights:
            kind = weight.name.split("/")[-1].removesuffix(":0")
            if kind.endswith(("_min", "_max")) and not kind.startswith(("kernel", "depthwise")):
                key = f"{name}/{'pre_activation' if kind.startswith('pre_') else 'output'}"
                found.setdefault(key, [None, None])[kind.endswith("_max")] = weight
    return found


def by_layer(ours):
    """Layer name -> the ranges of our layer, those of an input under the name of the input."""
    return {layer.name.removesuffix("_range"): layer.ranges() for layer in ours.layers if hasattr(layer, "ranges")}


def kernel(model, name):
    """The kernel of a layer of either model."""
    return next(w for w in _layer(model, name).trainable_weights if "kernel" in w.name).numpy()


def statistics(model, name):
    """(moving mean, moving variance) of a batch normalization of either model."""
    weights = _layer(model, name).non_trainable_weights
    return tuple(next(w for w in weights if kind in w.name).numpy() for kind in ("moving_mean", "moving_variance"))


def _layer(model, name):
    return next(layer for layer in model.layers if layer.name in (name, f"quant_{name}"))


def quantized_tensors(content):
    """`(shape, scales, zero points)` of the int8 tensors of a .tflite, in an order of their own."""
    from ai_edge_litert.interpreter import Interpreter

    found = []
    for detail in Interpreter(model_content=content).get_tensor_details():
        parameters = detail["quantization_parameters"]
        if detail["dtype"] == np.int8:
            found.append((tuple(int(n) for n in detail["shape"]), parameters["scales"], parameters["zero_points"]))
    return sorted(found, key=lambda tensor: (tensor[0], len(tensor[1]), float(tensor[1].sum())))
