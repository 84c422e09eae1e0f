"""Summaries against numbers counted by hand and by Keras."""

import json

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.errors import FileError, InvalidArgumentError, UnsupportedModelError
from tfopt.core.models.fake_quantized import FakeQuantized
from tfopt.deploy.runner import TFLiteModel
from tfopt.report.measure import summary
from tfopt.report.records import FileSummary, ModelSummary


@pytest.fixture
def model():
    """Conv 3x3 1->2 (18 + 2), batch normalization (8), Dense 18->3 (54 + 3); half of the Dense kernel is zero."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            kl.Conv2D(2, 3, name="conv", bias_initializer="ones"),
            kl.BatchNormalization(name="norm"),
            kl.Flatten(name="flat"),
            kl.Dense(3, name="dense"),
        ],
        name="tiny",
    )
    kernel = np.ones((18, 3))
    kernel[:9] = 0
    model.get_layer("dense").kernel.assign(kernel)
    return model


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((6,), name="x"), kl.Dense(5, bias_initializer="ones", name="d")])
    path = tmp_path_factory.mktemp("files") / "dense.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


def row(record, path):
    return next(row for row in record.layers if row.path == path)


def test_counts(model):
    record = summary(model)
    assert isinstance(record, ModelSummary)
    assert record.parameters == model.count_params() == 20 + 8 + 57
    assert record.macs == 9 * 9 * 2 + 54
    dense = row(record, "dense")
    assert (dense.kind, dense.output_shape, dense.macs) == ("Dense", (None, 3), 54)
    assert (dense.parameters, dense.nonzero_parameters, dense.sparsity) == (57, 27, 0.5)
    assert row(record, "norm").nonzero_parameters == 4  # gamma and variance; beta and mean are zero
    assert row(record, "norm").sparsity is None
    assert record.nonzero_parameters == 20 + 4 + 27
    assert record.sparsity == pytest.approx(27 / 72)
    assert record.kept_ratio == pytest.approx(45 / 72)
    assert record.float32_bytes == 4 * 85


def test_shared_layers_count_once(model):
    inner = keras.Sequential([keras.Input((4,)), kl.Dense(4, name="d")], name="inner")
    a, b = keras.Input((4,)), keras.Input((4,))
    shared = keras.Model([a, b], kl.Add(name="sum")([inner(a), inner(b)]))
    record = summary(shared)
    assert [r.path for r in record.layers] == ["inner/d", "sum"]
    assert (record.parameters, record.macs, row(record, "inner/d").macs) == (20, 32, 32)


def test_ops_that_compute_have_a_row():
    x = keras.Input((3, 4))
    model = keras.Model(x, keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1))) + 1.0)
    record = summary(model)
    assert [(r.kind, r.macs) for r in record.layers] == [("op", 36)]


def test_wrapper_of_tfopt_counts_the_parameters_of_its_layer():
    class Quantized(kl.Layer):
        wraps_layer = True

        def __init__(self, layer, **kwargs):
            super().__init__(**kwargs)
            self.layer = layer

        def build(self, shape):
            self.layer.build(shape)
            self.low = self.add_weight(shape=(), initializer="zeros")

        def call(self, x):
            return self.layer(x)

    model = keras.Sequential([keras.Input((4,)), Quantized(kl.Dense(3), name="q")])
    (only,) = summary(model).layers
    assert (only.kind, only.parameters, only.macs) == ("Quantized(Dense)", 15, 12)
    assert only.kernel_parameters == 12


def test_ranges_are_no_parameters():
    class Range(FakeQuantized, kl.Layer):
        def build(self, shape):
            self.low = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            return x * self.low

    record = summary(keras.Sequential([keras.Input((4,)), Range(name="range"), kl.Dense(3)]))
    assert (row(record, "range").parameters, record.parameters) == (0, 15)


def test_recurrent_kernels_are_found_in_the_cell():
    record = summary(keras.Sequential([keras.Input((5, 3)), kl.LSTM(4, name="lstm")]))
    assert row(record, "lstm").kernel_parameters == 4 * 4 * (3 + 4)


def test_unknown_macs_are_said():
    record = summary(keras.Sequential([keras.Input((None, None, 3)), kl.Conv2D(4, 3, name="c")]))
    assert record.macs is None
    assert row(record, "c").macs is None
    assert "MACs unknown" in str(record)
    assert "(?, ?, ?, 4)" in str(record)


def test_renderings(model, tmp_path):
    record = summary(model)
    text = str(record)
    assert "\ndense  Dense " in text
    assert "50.0 %" in text
    assert text == repr(record)
    assert "| dense | Dense | (?, 3) | 57 | 27 | 50.0 % | 54 |" in record.to_markdown()
    loaded = json.loads(record.to_json())
    assert (loaded["parameters"], loaded["sparsity"], len(loaded["layers"])) == (85, pytest.approx(0.375), 4)
    page = record.save(tmp_path / "summary.html").read_text()
    assert "<svg" in page
    assert "class='number'>57<" in record._repr_html_()


def test_model_is_left_as_it_was(model):
    before = [weight.copy() for weight in model.get_weights()]
    summary(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("kind", ["path", "text", "opened"])
def test_file(path, kind):
    record = summary({"path": path, "text": str(path), "opened": TFLiteModel(path)}[kind])
    assert isinstance(record, FileSummary)
    assert [(op.name, op.output_dtype, op.ops) for op in record.ops] == [("FULLY_CONNECTED", "float32", 1)]
    (weights,) = record.weights
    assert (weights.dtype, weights.tensors, weights.parameters, weights.size_bytes) == ("float32", 2, 35, 140)
    assert (record.parameters, record.nonzero_parameters) == (35, 35)
    assert record.size_bytes == path.stat().st_size
    assert "x: float32[?, 6] -> output_0: float32[?, 5]" in str(record)
    assert "<svg" not in record.to_html()


def test_bad_input(tmp_path):
    for value in (None, 3, kl.Dense(2)):
        with pytest.raises(InvalidArgumentError):
            summary(value)
    with pytest.raises(UnsupportedModelError):
        summary(keras.Sequential([kl.Dense(2)]))
    with pytest.raises(FileError):
        summary(tmp_path / "none.tflite")
