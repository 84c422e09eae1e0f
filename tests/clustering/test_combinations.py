"""Pruning, clustering and quantization on one another, counted in the .tflite file itself."""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers as kl

import tfopt

DATA = np.random.default_rng(0).uniform(-1, 1, (48, 10, 10, 2)).astype("float32")
KERNELS = {(8, 3, 3, 2): "conv", (12, 3, 3, 8): "strided", (20, 108): "hidden", (4, 20): "head"}  # shapes in the file


def network():
    return keras.Sequential(
        [
            keras.Input((10, 10, 2)),
            kl.Conv2D(8, 3, use_bias=False, name="conv"),
            kl.BatchNormalization(name="bn"),
            kl.ReLU(name="relu"),
            kl.Conv2D(12, 3, strides=2, activation="relu", name="strided"),
            kl.Flatten(name="flatten"),
            kl.Dense(20, activation="relu", name="hidden"),
            kl.Dense(4, name="head"),
        ]
    )


def trained(model):
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    model.fit(DATA, DATA[:, 0, :2, 0].repeat(2, 1), batch_size=8, epochs=2, verbose=0)
    return model


def kernels(path):
    """The integer kernels of a file by layer, output channels first."""
    content = path.read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    graph = model.Subgraphs(0)
    found = {}
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() == schema.TensorType.INT8 and tensor.ShapeLength() > 1 and not buffer.DataIsNone():
            found[KERNELS[tuple(tensor.ShapeAsNumpy())]] = (
                buffer.DataAsNumpy().view(np.int8).reshape(tensor.ShapeAsNumpy())
            )
    assert sorted(found) == sorted(KERNELS.values())
    return found


def exported(model, folder):
    tfopt.export_tflite(model, folder / "model.tflite", data=DATA, sparse=False)
    return kernels(folder / "model.tflite")


def zeros(model):
    return {name: int((model.get_layer(name).kernel.numpy() == 0).sum()) for name in KERNELS.values()}


def test_pruned_and_quantized(tmp_path):
    pruned = tfopt.prune(network(), sparsity=0.8)
    integers = exported(trained(tfopt.quantize(pruned)), tmp_path)
    for name, count in zeros(pruned).items():
        assert (integers[name] == 0).sum() >= count > 0


@pytest.mark.parametrize("per_channel", [False, True])
def test_clustered_and_quantized(per_channel, tmp_path):
    clustered = tfopt.cluster(network(), 6, per_channel=per_channel)
    integers = exported(trained(tfopt.quantize(clustered)), tmp_path)
    for name, kernel in integers.items():
        assert 2 <= max(len(np.unique(channel)) for channel in kernel) <= 6
        if name in ("hidden", "head") or (name == "strided" and not per_channel):  # one range for the whole kernel
            assert 4 <= len(np.unique(kernel)) <= 6


def test_all_three(tmp_path):
    pruned = tfopt.prune(network(), sparsity=0.8)
    quantized = trained(tfopt.quantize(trained(tfopt.cluster(pruned, 6))))
    integers = exported(quantized, tmp_path)
    plain = tfopt.strip(quantized)
    for name, count in zeros(pruned).items():
        assert (integers[name] == 0).sum() >= zeros(plain)[name] >= count > 0
        assert max(len(np.unique(channel)) for channel in integers[name]) <= 6
        assert len(np.unique(plain.get_layer(name).kernel.numpy())) == 6
    assert max(len(np.unique(integers[name])) for name in ("strided", "hidden", "head")) <= 6


def test_all_three_at_once_with_a_growing_mask(tmp_path):
    schedule = tfopt.PolynomialDecay(0.0, 0.75, 0, 8, frequency=2)
    quantized = trained(tfopt.quantize(tfopt.cluster(tfopt.prune(network(), schedule), 8)))
    for kernel in exported(quantized, tmp_path).values():
        assert (kernel == 0).sum() >= 0.75 * kernel.size - 1
        assert max(len(np.unique(channel)) for channel in kernel) <= 8


def test_every_convolution_of_one_set_of_values_gets_one_range(tmp_path):
    layers = [
        kl.Conv2D(2, 3, padding="same"),
        kl.Conv2DTranspose(3, 3),
        kl.Reshape((144, 3)),
        kl.Conv1D(4, 3),
        kl.Conv1DTranspose(4, 3),
    ]
    model = keras.Sequential([keras.Input((10, 10, 2)), *layers])
    quantized = tfopt.calibrate(tfopt.quantize(tfopt.cluster(model, 5)), DATA)
    export = tfopt.export_tflite(quantized, tmp_path / "model.tflite", data=DATA)
    assert export.mean_difference < 0.01 * export.tolerance
    model = schema.Model.GetRootAs((tmp_path / "model.tflite").read_bytes(), 0)
    graph = model.Subgraphs(0)
    found = []
    for tensor in map(graph.Tensors, range(graph.TensorsLength())):
        buffer = model.Buffers(tensor.Buffer())
        if tensor.Type() == schema.TensorType.INT8 and tensor.ShapeLength() > 2 and not buffer.DataIsNone():
            found.append((tensor.Quantization().ScaleLength(), len(np.unique(buffer.DataAsNumpy()))))
    assert found == [(1, 5)] * 4
