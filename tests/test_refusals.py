"""What is refused: before anything has changed, with a word on it, and with a way out that works."""

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import tfopt

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
IMAGES = np.random.default_rng(1).normal(size=(8, 12, 12, 3)).astype("float32")
Y = np.arange(24) % 3


@dataclass(frozen=True)
class Refusal:
    """A model, what is refused of it with which words, and the way out that these words name."""

    model: Any
    verb: Any
    says: str
    way_out: Any
    error: type = tfopt.UnsupportedModelError


def dense(**last):
    keras.utils.set_random_seed(0)
    layers = [kl.Dense(8, "relu", name="hidden"), kl.Dense(3, **{"activation": "softmax", "name": "head", **last})]
    model = keras.Sequential([keras.Input((6,), name="x"), *layers])
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def images():
    layers = [kl.Conv2D(8, 3, name="conv"), kl.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((12, 12, 3)), *layers])


def two_outputs():
    inputs = keras.Input((6,))
    return keras.Model(inputs, [kl.Dense(3, "softmax")(inputs), kl.Dense(2, "softmax")(inputs)])


class Clipped(kl.Layer):
    """Computes with NumPy."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda values: np.clip(values, -1, 1), [x], tf.float32), x.shape)

    def compute_output_shape(self, shape):
        return shape


class ClippedModel(keras.Model):
    def __init__(self, as_layer=False):
        super().__init__()
        self.dense, self.clip = kl.Dense(3), Clipped() if as_layer else Clipped().call

    def call(self, x):
        return self.clip(self.dense(x))

    def compute_output_shape(self, shape):
        return (shape[0], 3)


def called(model):
    model(X[:1])
    return model


class Gain(kl.Layer):
    """A kernel of its own that no record tells of."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1], 4), name="gain")

    def call(self, x):
        return keras.ops.matmul(x, self.gain)


@tfopt.register_layer(prunable=["gain"], macs=lambda layer, inputs, outputs: 4 * inputs[0][-1])
class KnownGain(Gain):
    def call(self, x):
        return keras.ops.matmul(x, self.gain)


def gain(cls=Gain):
    return keras.Sequential([keras.Input((6,)), cls(name="gain")])


def with_nan():
    model = dense()
    model.get_layer("hidden").bias.assign([np.nan] * 8)
    return model


def without_nan(model):
    model.get_layer("hidden").bias.assign(np.zeros(8))
    return tfopt.prune(model, sparsity=0.5)


def quantized_by_keras():
    model = dense()
    model.quantize("int8")
    return model


def calibrated(model):
    return tfopt.calibrate(tfopt.quantize(model), X)


def open_sizes():
    return keras.Sequential([keras.Input((None, 6)), kl.Conv1D(4, 3), kl.GlobalAveragePooling1D()])


def same_padding(padding="same"):
    pad = [kl.ZeroPadding2D(1)] if padding == "valid" else []
    conv = kl.Conv2D(8, 3, 2, padding)
    layers = [*pad, conv, kl.Conv2D(8, 1, name="pointwise"), kl.GlobalAveragePooling2D(), kl.Dense(2)]
    return keras.Sequential([keras.Input((12, 12, 3)), *layers])


def residual():
    inputs = keras.Input((6,))
    return keras.Model(inputs, kl.Dense(3)(kl.Add(name="add")([inputs, kl.Dense(6)(inputs)])))


def normalized(**options):
    normalization = kl.BatchNormalization(name="normalization", **options)
    return keras.Sequential([keras.Input((12, 12, 3)), kl.Conv2D(4, 3), normalization, kl.Flatten(), kl.Dense(2)])


def recurrent():
    return keras.Sequential([keras.Input((5, 6)), kl.LSTM(8, name="lstm"), kl.Dense(3)])


def written(tmp_path, model, **options):
    return tfopt.export_tflite(model, tmp_path / "model.tflite", **options)


def of_words():
    words = kl.StringLookup(vocabulary=["a", "b"], name="words")
    return keras.Sequential([keras.Input((2,), dtype="string"), words, kl.Embedding(3, 4), kl.Flatten()])


REFUSALS = {
    "prune an unbuilt model": Refusal(
        lambda: ClippedModel(as_layer=True),
        lambda m, _: tfopt.prune(m, sparsity=0.5),
        r"has to be built.*model\(x\[:1\]\)",
        lambda m, _: tfopt.prune(called(m), sparsity=0.5),
    ),
    "summary of a model that computes with NumPy": Refusal(
        lambda: called(ClippedModel()),
        lambda m, _: tfopt.summary(m),
        "symbolic tensors.*into a layer of its own",
        lambda m, _: tfopt.summary(called(ClippedModel(as_layer=True))),
    ),
    "prune a model that Keras quantized": Refusal(
        quantized_by_keras,
        lambda m, _: tfopt.prune(m, sparsity=0.5),
        "quantized by Keras.*before Keras' `quantize`",
        lambda m, _: tfopt.prune(dense(), sparsity=0.5),
    ),
    "prune NaN": Refusal(
        with_nan,
        lambda m, _: tfopt.prune(m, sparsity=0.5),
        "finite.*Train again",
        lambda m, _: without_nan(m),
        tfopt.NonFiniteError,
    ),
    "prune a layer that is not known": Refusal(
        gain,
        lambda m, _: tfopt.prune(m, sparsity=0.5),
        "kernel to prune.*register_layer",
        lambda m, _: tfopt.prune(gain(KnownGain), sparsity=0.5),
        tfopt.NothingToDoError,
    ),
    "prune nothing": Refusal(
        dense,
        lambda m, _: tfopt.prune(m, threshold=1e-9),
        "become zero.*higher",
        lambda m, _: tfopt.prune(m, threshold=0.1),
        tfopt.NothingToDoError,
    ),
    "prune layers that the criterion knows nothing of": Refusal(
        recurrent,
        lambda m, _: tfopt.prune(m, sparsity=0.5, criterion="bn_scale"),
        "has to have a meaning.*another criterion",
        lambda m, _: tfopt.prune(m, sparsity=0.5, criterion="magnitude"),
    ),
    "prune channels where all are excluded": Refusal(
        dense,
        lambda m, _: tfopt.prune(m, sparsity=0.5, pattern="channel", exclude="hidden"),
        "output channels can go.*`exclude`",
        lambda m, _: tfopt.prune(m, sparsity=0.5, pattern="channel"),
        tfopt.NothingToDoError,
    ),
    "prune depth without blocks": Refusal(
        dense,
        lambda m, _: tfopt.prune(m, sparsity=0.5, pattern="layer"),
        "block that can be dropped.*scale_width",
        lambda m, _: tfopt.scale_width(m, 0.5),
        tfopt.NothingToDoError,
    ),
    "shrink without masks": Refusal(
        dense,
        lambda m, _: tfopt.shrink(m),
        "channel has to be zero.*Mask channels first",
        lambda m, _: tfopt.shrink(tfopt.prune(m, sparsity=0.5, pattern="channel")),
        tfopt.NothingToDoError,
    ),
    "cluster without kernels": Refusal(
        gain,
        lambda m, _: tfopt.cluster(m, 4),
        "kernel to cluster.*register_layer",
        lambda m, _: tfopt.cluster(gain(KnownGain), 4),
        tfopt.NothingToDoError,
    ),
    "cluster twice": Refusal(
        lambda: tfopt.cluster(dense(), 4),
        lambda m, _: tfopt.cluster(m, 2),
        "clustered once.*`tfopt.strip`",
        lambda m, _: tfopt.cluster(tfopt.strip(m), 2),
        tfopt.NothingToDoError,
    ),
    "strip a plain model": Refusal(
        dense,
        lambda m, _: tfopt.strip(m),
        "plain Keras model.*plain already",
        lambda m, path: written(path, m),
        tfopt.NothingToDoError,
    ),
    "quantize twice": Refusal(
        lambda: tfopt.quantize(dense()),
        lambda m, _: tfopt.quantize(m),
        "quantized already.*`tfopt.strip",
        lambda m, _: tfopt.quantize(tfopt.strip(m)),
        tfopt.NothingToDoError,
    ),
    "quantize nothing": Refusal(
        dense,
        lambda m, _: tfopt.quantize(m, exclude=["hidden", "head"]),
        "layer that can be quantized.*`exclude`",
        lambda m, _: tfopt.quantize(m, exclude=["head"]),
        tfopt.NothingToDoError,
    ),
    "quantize and freeze synchronized normalization": Refusal(
        lambda: normalized(synchronized=True),
        lambda m, _: tfopt.quantize(m, freeze_batch_norm_after=10),
        "without `synchronized`.*synchronized=False",
        lambda m, _: tfopt.quantize(normalized(), freeze_batch_norm_after=10),
    ),
    "calibrate a float model": Refusal(
        dense,
        lambda m, _: tfopt.calibrate(m, X),
        "quantize",
        lambda m, _: calibrated(m),
        tfopt.InvalidArgumentError,
    ),
    "calibrate quantized weights": Refusal(
        lambda: tfopt.quantize(dense(), "int8_weight_only"),
        lambda m, _: tfopt.calibrate(m, X),
        "sets the ranges of activations.*Export it as it is",
        lambda m, path: written(path, m),
        tfopt.NothingToDoError,
    ),
    "export ranges that were not set": Refusal(
        lambda: tfopt.quantize(dense()),
        lambda m, path: written(path, m),
        "range.*calibrate",
        lambda m, path: written(path, tfopt.calibrate(m, X), data=X),
        tfopt.InvalidArgumentError,
    ),
    "export strings": Refusal(
        of_words,
        lambda m, path: written(path, m),
        "no operations on strings.*split_preprocessing",
        lambda m, path: written(path, tfopt.split_preprocessing(m)[1]),
    ),
    "export open sizes": Refusal(
        open_sizes,
        lambda m, path: written(path, m),
        "fixed shapes.*input_shapes",
        lambda m, path: written(path, m, input_shapes=(9, 6)),
        tfopt.InvalidArgumentError,
    ),
    "export integers of a float model": Refusal(
        dense,
        lambda m, path: written(path, m, input_type="int8"),
        "only in an int8 file",
        lambda m, path: written(path, calibrated(m), data=X, input_type="int8"),
        tfopt.InvalidArgumentError,
    ),
    "export another kind than quantized for": Refusal(
        lambda: calibrated(dense()),
        lambda m, path: written(path, m, quantization="float16"),
        r"as what it was quantized for.*tfopt\.strip\(model\)",
        lambda m, path: written(path, tfopt.strip(m), quantization="float16"),
        tfopt.InvalidArgumentError,
    ),
    "export to the name of a Keras file": Refusal(
        dense,
        lambda m, path: tfopt.export_tflite(m, path / "model.keras"),
        r"must end in \.tflite.*model\.tflite",
        lambda m, path: tfopt.export_tflite(m, path / "model.tflite"),
        tfopt.FileError,
    ),
    "split a model without preprocessing": Refusal(
        dense,
        lambda m, _: tfopt.split_preprocessing(m),
        "strings, lookups or hashing.*`export_tflite` takes all of it",
        lambda m, path: written(path, m),
        tfopt.NothingToDoError,
    ),
    "open a model of known layers": Refusal(
        dense,
        lambda m, _: tfopt.functional(m),
        "written as code.*Use it as it is",
        lambda m, _: tfopt.quantize(m),
        tfopt.NothingToDoError,
    ),
    "swap the size of a pruned kernel": Refusal(
        lambda: tfopt.prune(images(), sparsity=0.5),
        lambda m, _: tfopt.swap_kernel_size(m, 5),
        "keeps its size.*tfopt.strip",
        lambda m, _: tfopt.swap_kernel_size(tfopt.strip(m), 5),
    ),
    "scale no width": Refusal(
        lambda: keras.Sequential([keras.Input((6,)), kl.Dense(3)]),
        lambda m, _: tfopt.scale_width(m, 0.5),
        "has to change its width.*Only hidden",
        lambda m, _: tfopt.scale_width(dense(), 0.5),
        tfopt.NothingToDoError,
    ),
    "drop a layer that changes the shape": Refusal(
        residual,
        lambda m, _: tfopt.drop_layers(m, m.layers[-1].name),
        "shape",
        lambda m, _: tfopt.drop_layers(m, "add"),
        tfopt.TfoptError,
    ),
    "weigh models of two outputs": Refusal(
        two_outputs,
        lambda m, _: tfopt.fit_weights([m, m], X, Y),
        r"one output.*keras.Model\(model.inputs, model.outputs\[0\]\)",
        lambda m, _: tfopt.fit_weights([keras.Model(m.inputs, m.outputs[0]), dense()], X, Y),
    ),
    "average clusters": Refusal(
        lambda: tfopt.cluster(dense(), 4),
        lambda m, _: tfopt.average_weights([m, m], method="uniform"),
        "has no clusters.*Average first",
        lambda m, _: tfopt.cluster(tfopt.average_weights([dense(), dense()], method="uniform").model, 4),
    ),
    "average one model": Refusal(
        dense,
        lambda m, _: tfopt.average_weights([m], method="uniform"),
        "two models or more",
        lambda m, _: tfopt.average_weights([m, dense()], method="uniform"),
        tfopt.NothingToDoError,
    ),
    "stack pruned models": Refusal(
        lambda: tfopt.prune(dense(), sparsity=0.5),
        lambda m, _: tfopt.stack([m, m], X, Y),
        "without what `prune`.*Stack the plain models",
        lambda m, _: tfopt.stack([dense(), dense()], X, Y, folds=2, epochs=1),
    ),
    "start from a teacher of other layers": Refusal(
        images,
        lambda m, _: tfopt.init_from(m, recurrent(), verbose=0),
        "find weights in the teacher.*by class",
        lambda m, _: tfopt.init_from(m, images(), verbose=0),
        tfopt.NothingToDoError,
    ),
    "distil into a frozen student": Refusal(
        lambda: frozen(dense()),
        lambda m, _: distilled(m),
        "weights that train.*student.trainable = True",
        lambda m, _: distilled(thawed(m)),
        tfopt.NothingToDoError,
    ),
    "layers for XNNPACK behind padding": Refusal(
        same_padding,
        lambda m, _: tfopt.prune(m, sparsity=0.5, include=tfopt.xnnpack_layers(m)),
        "'valid' on 3 channels.*ZeroPadding2D",
        lambda m, _: tfopt.prune(
            same_padding("valid"), sparsity=0.5, include=tfopt.xnnpack_layers(same_padding("valid"))
        ),
    ),
    "fit thresholds without MACs": Refusal(
        lambda: gain(unknown_gain()),
        lambda m, _: tfopt.fit_thresholds([m, wide()], X, Y),
        "MACs of each layer.*register_macs",
        lambda m, _: tfopt.fit_thresholds([gain(KnownGain), wide()], X, Y),
    ),
    "write the sparsity of a model without masks": Refusal(
        dense,
        lambda m, path: m.fit(X, Y, callbacks=[tfopt.PruningSummaries(path)], verbose=0),
        "has pruning masks.*`tfopt.prune` first",
        lambda m, path: summarized(tfopt.prune(m, sparsity=0.5), path),
        tfopt.NothingToDoError,
    ),
}


def unknown_gain():
    class UnknownGain(Gain):
        def call(self, x):
            return keras.ops.matmul(x, self.gain) + keras.ops.sum(keras.random.uniform((1,)) * 0)

    return UnknownGain


def wide():
    return keras.Sequential([keras.Input((6,)), kl.Dense(64, "relu"), kl.Dense(4)])


def frozen(model):
    model.trainable = False
    return model


def thawed(model):
    model.trainable = True
    return model


def distilled(student):
    distiller = tfopt.Distiller(student, dense())
    distiller.compile("sgd", "sparse_categorical_crossentropy")
    return distiller.fit(X, Y, verbose=0)


def summarized(model, path):
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model.fit(X, Y, callbacks=[tfopt.PruningSummaries(path)], verbose=0)


def state(model):
    layers = [(id(layer), layer.name, layer.trainable) for layer in model._flatten_layers()]
    return layers, [np.asarray(weight).tobytes() for weight in model.weights], model.compiled


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_before_anything_has_changed_with_a_way_out(name, tmp_path):
    refusal = REFUSALS[name]
    model = refusal.model()
    before = state(model)
    with pytest.raises(refusal.error, match=f"(?s){refusal.says}"):
        refusal.verb(model, tmp_path)
    assert state(model) == before
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".tflite", ".keras")]
    assert refusal.way_out(model, tmp_path) is not None
