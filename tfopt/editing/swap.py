"""The verbs `swap_activation`, `swap_kernel_size` and `swap_pooling`: the same network with other layers in places."""

from __future__ import annotations

from collections.abc import Callable

import keras

from tfopt.core.checks import as_count
from tfopt.core.models.graph import read
from tfopt.core.models.opening import opened
from tfopt.editing.activations import as_target, plan_activations
from tfopt.editing.kernels import plan_kernels
from tfopt.editing.places import Where, carried_out, places_of
from tfopt.editing.pooling import plan_pooling


def swap_activation(model: keras.Model, to: str | Callable, where: Where = None, *, verbose: int = 0) -> keras.Model:
    """Returns a copy of `model` with another activation; fine-tune it then.

    Swapped are the activations of layers (`Dense(8, activation="relu")`), layers that are one (`ReLU`, `Activation`)
    and ops such as `keras.ops.relu(x)`. These stay unless `where` spells out their name: what gives an output of the
    model, and the gates and probabilities (sigmoid, softmax and their relatives). Activations in recurrent layers stay.

    Args:
        model: a built, float Keras model.
        to: the name of a Keras activation (`"leaky_relu"` has slope 0.2); `"prelu"`, with a slope to learn for each
            channel, 0.25 at the start; an activation function; or a layer class or function that makes a layer, as
            `lambda: keras.layers.LeakyReLU(0.1)`.
        where: layer names or globs, such as `"encoder/conv*"`, or a function `(layer or op) -> bool`; all by default.
        verbose: 1 prints what is swapped, and what stays for what reason.

    Returns:
        A new, uncompiled model with the names, weights and weight constraints of `model`. Activations in wrappers,
        such as `TimeDistributed`, stay with a warning.

    Raises:
        InvalidArgumentError: an unknown activation or layer name.
        NothingToDoError: nothing to swap; says what stays for what reason.
        UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.

    Source: the activations of Maas et al. 2013, He et al. 2015 (https://arxiv.org/abs/1502.01852), Clevert et al. 2016.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(4, "relu"), dense(2, "softmax")])
        >>> [layer.activation.__name__ for layer in swap_activation(model, "elu").layers]
        ['elu', 'softmax']
    """
    graph = opened(read(model), blocks_only=True)
    places = places_of(graph, where, "swap_activation")
    plan, outcome = plan_activations(graph, places, as_target(to))
    fix = "Name an output or a gate in `where` to swap it too."
    return carried_out(graph, plan, outcome, fix, verbose)


def swap_kernel_size(model: keras.Model, size: int, where: Where = None, *, verbose: int = 0) -> keras.Model:
    """Returns a copy of `model` whose convolutions have kernels of another size; fine-tune it then.

    A larger kernel gets zeros around the old one, placed so that each weight reads what it read before: the outputs
    stay as they are. A smaller one keeps the centre. The output grid stays. With padding "same" or "causal" that needs
    nothing else; with "valid" the layer turns to "same" where that gives the same, otherwise a `ZeroPadding` or
    `Cropping` layer in front makes up for the difference, or the one that is there already is changed.

    Args:
        model: a built, float Keras model. Convolutions are resized whether plain, grouped, dilated,
            depthwise, separable or transposed, in 1D to 3D.
        size: of the new kernels along each axis, in elements; usually 1, 3 or 5.
        where: layer names or globs, such as `"encoder/conv*"`, or a function `(layer or op) -> bool`. By default all
            convolutions but those of kernel size 1, which mix channels only.
        verbose: 1 prints what is swapped, and what stays for what reason.

    Returns:
        A new, uncompiled model with the names of `model`, its weights as far as they fit and the weight constraints of
        the other weights. It warns where a larger kernel cannot keep the outputs (a stride above the old size, with an
        input of unknown size) and where kernels stay: in wrappers and recurrent layers, with `output_padding`, and
        where a transposed convolution with padding "valid" would get a smaller output.

    Raises:
        InvalidArgumentError: `size` is no whole number above 0, or an unknown layer name.
        NothingToDoError: no kernel changes; says which stay for what reason.
        UnsupportedModelError: an unbuilt or quantized model, one that is no graph, a kernel with a mask or clusters.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, padding="same", name="conv")])
        >>> swap_kernel_size(model, 5).get_layer("conv").kernel_size
        (5, 5)
    """
    size = as_count("size", size)
    graph = opened(read(model), blocks_only=True)
    places = places_of(graph, where, "swap_kernel_size")
    plan, outcome = plan_kernels(graph, places, size)
    fix = "Name layers with kernels of size 1 in `where` to enlarge them."
    return carried_out(graph, plan, outcome, fix, verbose)


def swap_pooling(model: keras.Model, to: str, where: Where = None, *, verbose: int = 0) -> keras.Model:
    """Returns a copy of `model` with another pooling; fine-tune it then.

    Args:
        model: a built, float Keras model.
        to: `"max"` or `"average"`: what is computed over each window, of global and adaptive pooling too. `"adaptive"`:
            windows that give the same output grid for inputs of any size; max stays max and average stays average.
            Where windows do not overlap and the input is a multiple of the grid, outputs stay as they are. Global
            pooling has a fixed grid already.
        where: layer names or globs, such as `"encoder/pool*"`, or a function `(layer or op) -> bool`; all by default.
        verbose: 1 prints what is swapped, and what stays for what reason.

    Returns:
        A new, uncompiled model with the names, weights and weight constraints of `model`. Pooling in wrappers stays
        with a warning, as does, for `"adaptive"`, pooling whose output size is not known.

    Raises:
        InvalidArgumentError: another `to`, or an unknown layer name.
        NothingToDoError: nothing to swap; says what stays for what reason.
        UnsupportedModelError: an unbuilt or quantized model, or one that is no graph.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.MaxPooling2D(name="pool")])
        >>> swap_pooling(model, "average").get_layer("pool").__class__.__name__
        'AveragePooling2D'
    """
    graph = opened(read(model), blocks_only=True)
    places = places_of(graph, where, "swap_pooling")
    plan, outcome = plan_pooling(places, to)
    return carried_out(graph, plan, outcome, "Each pooling is as asked for already, or there is none.", verbose)
