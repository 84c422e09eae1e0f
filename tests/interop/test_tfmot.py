"""The tf_keras door: TFMOT's own results, and the user's Keras untouched."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tfopt.interop.tfmot as interop
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.interop import pruning

tfmot = interop.tfmot()
tf_keras = sys.modules["tf_keras"]
layers = tf_keras.layers


def network(seed=0):
    tf_keras.utils.set_random_seed(seed)
    return tf_keras.Sequential(
        [
            layers.Conv2D(8, 3, input_shape=(12, 12, 1), name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(10, name="dense"),
        ]
    )


def nested_network():
    tf_keras.utils.set_random_seed(0)
    encoder = tf_keras.Sequential([layers.Dense(16, input_shape=(8,), name="inner")], name="encoder")
    inputs = tf_keras.Input((8,))
    return tf_keras.Model(inputs, layers.Dense(4, name="outer")(layers.Rescaling(0.5, name="rescale")(encoder(inputs))))


def data(count=320):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 12, 12, 1)).astype("float32"), rng.integers(0, 10, count)


def train(model, epochs=2, **options):
    model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    tf_keras.utils.set_random_seed(1)
    model.fit(*data(), batch_size=32, epochs=epochs, verbose=0, shuffle=False, **options)
    return model


def zeros(model):
    """Zeros in each weight of two or more axes, by the name of its layer."""
    return {
        layer.name: int((layer.kernel.numpy() == 0).sum()) for layer in flat_layers(model) if hasattr(layer, "kernel")
    }


def flat_layers(model):
    return [layer for layer in model.submodules if isinstance(layer, tf_keras.layers.Layer)]


def assert_same_weights(model, other):
    assert len(model.get_weights()) == len(other.get_weights()) > 0
    for weight, expected in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def schedule():
    return interop.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=20, frequency=10)


@pytest.fixture(scope="module")
def pruned():
    """Trained to the end of `schedule`; not to be changed."""
    return train(interop.prune(network(), schedule()))


class TestImport:
    """In a process of its own, where neither TFMOT nor tf_keras has been imported."""

    SCRIPT = textwrap.dedent(
        """
        import os, sys
        import tensorflow as tf
        by_tensorflow = "tf_keras" in sys.modules  # with TF_USE_LEGACY_KERAS
        import tfopt.interop.tfmot as interop

        assert not interop.is_tf_keras_model("text")
        assert "tensorflow_model_optimization" not in sys.modules
        assert ("tf_keras" in sys.modules) == by_tensorflow
        value = os.environ.get("TF_USE_LEGACY_KERAS")
        interop.PolynomialDecay
        assert "tensorflow_model_optimization" in sys.modules
        assert os.environ.get("TF_USE_LEGACY_KERAS") == value
        aliases = tf.keras, tf.compat.v1.keras, tf.compat.v2.keras
        print(*[alias.layers.Dense.__module__.split(".")[0] for alias in aliases])

        import tf_keras
        before = tf.keras.Model
        model = tf_keras.Sequential([tf_keras.layers.LSTM(4, input_shape=(5, 3), name="lstm")])
        assert interop.is_tf_keras_model(model)
        interop.prune(model)
        interop.convert(tf_keras.Sequential([tf_keras.layers.Dense(4, input_shape=(5,))]), "float16")
        assert tf.keras.Model is before
        assert os.environ.get("TF_USE_LEGACY_KERAS") == value
        """
    )

    @pytest.mark.parametrize(("value", "package"), [(None, "keras"), ("1", "tf_keras")])
    def test_keeps_the_users_keras_and_environment(self, value, package):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment.pop("TF_USE_LEGACY_KERAS", None)
        if value is not None:
            environment["TF_USE_LEGACY_KERAS"] = value
        run = subprocess.run(
            [sys.executable, "-c", self.SCRIPT], env=environment, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.split() == [package] * 3

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tf_keras", None)
        with pytest.raises(interop.MissingPackageError, match="pip install tensorflow-model-optimization tf_keras"):
            interop.tfmot.__wrapped__()

    def test_schedules_are_tfmots_own(self):
        assert interop.PolynomialDecay is tfmot.sparsity.keras.PolynomialDecay
        assert interop.ConstantSparsity is tfmot.sparsity.keras.ConstantSparsity
        with pytest.raises(AttributeError, match="Linear"):
            interop.Linear  # noqa: B018


class TestPrune:
    def test_with_a_schedule_equals_tfmot(self, pruned):
        expected = tfmot.sparsity.keras.prune_low_magnitude(network(), schedule())
        train(expected, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
        assert_same_weights(pruned, expected)

    def test_fit_reaches_the_scheduled_sparsity_without_a_callback(self, pruned):
        # TFMOT keeps round(size * 0.2) weights: 72 -> 14, 8000 -> 1600.
        assert zeros(interop.strip(pruned)) == {"conv": 72 - 14, "dense": 8000 - 1600}

    def test_a_callback_of_the_user_is_not_doubled_and_others_run(self):
        class Count(tf_keras.callbacks.Callback):
            epochs = 0
            sparse_at_epoch_end = True

            def on_epoch_end(self, epoch, logs=None):
                self.epochs += 1
                kernel = self.model.layers[0].layer.kernel.numpy()
                self.sparse_at_epoch_end &= bool((kernel == 0).sum() == 58)

        count = Count()
        train(interop.prune(network(), sparsity=0.8), callbacks=[count])
        assert count.epochs == 2
        assert count.sparse_at_epoch_end
        own = tfmot.sparsity.keras.UpdatePruningStep()
        assert pruning._callbacks_with_update_step([own]) == [own]

    def test_without_a_schedule_masks_hold_at_once_and_through_fit(self):
        pruned = interop.prune(network(), sparsity=0.8)
        before = [weight == 0 for weight in interop.strip(pruned).get_weights()[::6]]
        after = [weight == 0 for weight in interop.strip(train(pruned)).get_weights()[::6]]
        assert [int(mask.sum()) for mask in before] == [58, 6400]
        for old, new in zip(before, after, strict=True):
            np.testing.assert_array_equal(old, new)

    def test_include_exclude_and_dict(self):
        assert zeros(interop.strip(interop.prune(network(), include="conv"))) == {"conv": 36, "dense": 0}
        assert zeros(interop.strip(interop.prune(network(), exclude=["co*"]))) == {"conv": 0, "dense": 4000}
        by_layer = interop.prune(network(), sparsity={"*": 0.5, "dense": 0.9})
        assert zeros(interop.strip(by_layer)) == {"conv": 36, "dense": 7200}

    def test_nested_models_and_unsupported_layers_left_out(self):
        with pytest.raises(UnsupportedModelError, match=r"Rescaling.*port the model to Keras 3"):
            interop.prune(nested_network(), sparsity=0.5)
        pruned = interop.strip(interop.prune(nested_network(), sparsity=0.5, exclude="rescale"))
        assert zeros(pruned) == {"inner": 64, "outer": 32}
        assert zeros(interop.strip(interop.prune(nested_network(), sparsity=0.5, include="encoder"))) == {
            "inner": 64,
            "outer": 0,
        }

    @pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved_model"])
    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    def test_saves_as_plain_tfmot(self, pruned, tmp_path, name):
        pruned.save(tmp_path / name)
        with tfmot.sparsity.keras.prune_scope():
            loaded = tf_keras.models.load_model(tmp_path / name)
        assert type(loaded) is tf_keras.Sequential
        assert_same_weights(interop.strip(loaded), interop.strip(pruned))

    def test_input_is_not_changed(self):
        model = nested_network()
        weights = model.get_weights()
        trained = interop.prune(model, sparsity=0.5, exclude="rescale")
        trained.compile("sgd", "mse")
        trained.fit(np.ones((64, 8)), np.zeros((64, 4)), verbose=0)
        for layer in flat_layers(model):
            assert not hasattr(layer, "get_prunable_weights")
        assert model.get_layer("outer").output.shape == (None, 4)  # raises if the layer was called a second time
        for weight, expected in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, expected)


class TestQuantize:
    def test_equals_tfmot(self):
        expected = train(tfmot.quantization.keras.quantize_model(network()))
        quantized = train(interop.quantize(network()))
        names = [layer.name for layer in quantized.layers]
        assert (
            names[1:] == [layer.name for layer in expected.layers][1:] == [f"quant_{n.name}" for n in network().layers]
        )
        assert_same_weights(quantized, expected)

    def test_exclude_leaves_a_layer_in_float(self):
        names = [layer.name for layer in interop.quantize(network(), exclude="dense").layers]
        assert "dense" in names
        assert "quant_conv" in names

    def test_tfmots_refusal_says_what_to_do(self):
        model = tf_keras.Sequential([layers.Rescaling(2.0, input_shape=(3,)), layers.Dense(2)])
        with pytest.raises(UnsupportedModelError, match=r"Rescaling.*is not supported.*port the model to Keras 3"):
            interop.quantize(model)

    def test_custom_layers_need_no_scope(self):
        class Double(layers.Layer):
            def call(self, inputs):
                return 2 * inputs

        model = tf_keras.Sequential([layers.Dense(2, input_shape=(3,), name="d"), Double(name="double")])
        quantized = interop.quantize(model, include="d")
        assert [layer.name for layer in quantized.layers][-2:] == ["quant_d", "double"]


class TestStripAndConvert:
    def test_strip_equals_tfmot_and_leaves_the_input_alone(self, pruned):
        weights = pruned.get_weights()
        stripped = interop.strip(pruned)
        stripped.layers[0].set_weights([w + 1 for w in stripped.layers[0].get_weights()])
        for weight, expected in zip(pruned.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(weight, expected)
        assert_same_weights(interop.strip(pruned), tfmot.sparsity.keras.strip_pruning(pruned))

    def test_quantization_aware_models_become_int8_files_that_compute_the_same(self):
        from ai_edge_litert.interpreter import Interpreter

        quantized = train(interop.quantize(network()), epochs=1)
        interpreter = Interpreter(model_content=interop.convert(quantized, "int8"))
        interpreter.allocate_tensors()
        types = {tensor["name"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        ops = interpreter._get_ops_details()
        tensors = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        computing = [op for op in ops if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
        assert len(computing) == 2
        assert len(types) > 0
        for op in computing:
            assert [tensors[index] for index in op["inputs"][:2]] == [np.int8, np.int8]
        x = data(8)[0]
        (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(source["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        expected = quantized.predict(x, verbose=0)
        step = np.ptp(expected) / 255
        assert np.abs(interpreter.get_tensor(target["index"]) - expected).mean() < step

    def test_float_files_get_smaller_by_quantization(self):
        pruned = interop.prune(network(), sparsity=0.5)
        sizes = {kind: len(interop.convert(pruned, kind)) for kind in ("none", "dynamic", "float16")}
        assert sizes["none"] == len(interop.convert(interop.strip(pruned)))  # the masks are not in the file
        assert sizes["dynamic"] < 0.4 * sizes["none"]
        assert sizes["float16"] < 0.6 * sizes["none"]


class TestErrors:
    @pytest.mark.parametrize("sparsity", [-0.1, 0.0, 1.0, "a", "keep", True, {"dense": 2.0}])
    def test_sparsity(self, sparsity):
        with pytest.raises(InvalidArgumentError, match="above 0 and below 1"):
            interop.prune(network(), sparsity=sparsity)

    def test_arguments(self):
        model = network()
        with pytest.raises(InvalidArgumentError, match="exclude each other"):
            interop.prune(model, schedule(), sparsity=0.5)
        with pytest.raises(InvalidArgumentError, match="callable"):
            interop.prune(model, 0.8)
        for verb in (interop.prune, interop.quantize):
            with pytest.raises(InvalidArgumentError, match=r"'nosuch'.*conv, bn"):
                verb(model, include="nosuch")
            with pytest.raises(NothingToDoError):
                verb(model, exclude="*")
        with pytest.raises(InvalidArgumentError, match="'none', 'dynamic'"):
            interop.convert(model, "int4")
        with pytest.raises(InvalidArgumentError, match="quantization-aware"):
            interop.convert(model, "int8")

    def test_models(self):
        class Subclassed(tf_keras.Model):
            def call(self, inputs):
                return inputs

        broken = network()
        broken.layers[0].set_weights([np.full_like(w, np.nan) for w in broken.layers[0].get_weights()])
        for verb in (interop.prune, interop.quantize, interop.strip):
            with pytest.raises(UnsupportedModelError, match="Sequential or Functional"):
                verb(Subclassed())
            with pytest.raises(UnsupportedModelError, match="built"):
                verb(tf_keras.Sequential([layers.Dense(2)]))
            with pytest.raises(NonFiniteError, match="conv/kernel"):
                verb(broken)
        with pytest.raises(NothingToDoError, match="kernel"):
            interop.prune(tf_keras.Sequential([layers.ReLU(input_shape=(3,))]))

    def test_twice(self):
        pruned, quantized = interop.prune(network()), interop.quantize(network())
        with pytest.raises(NothingToDoError, match="pruned once"):
            interop.prune(pruned)
        with pytest.raises(UnsupportedModelError, match=r"tfopt\.strip"):
            interop.quantize(pruned)
        with pytest.raises(NothingToDoError, match="once"):
            interop.quantize(quantized)
        with pytest.raises(UnsupportedModelError, match="no strip"):
            interop.strip(quantized)
        with pytest.raises(NothingToDoError, match="pruning wrappers"):
            interop.strip(network())
        with pytest.raises(InvalidArgumentError, match="Pass 'int8'"):
            interop.convert(quantized, "none")


def test_a_fused_lstm_starts_each_sample_anew(tmp_path):
    import tfopt

    model = tf_keras.Sequential([tf_keras.layers.LSTM(6, input_shape=(7, 5)), tf_keras.layers.Dense(2)])
    x = np.random.default_rng(0).normal(size=(5, 7, 5)).astype("float32")
    tfopt.export_tflite(model, tmp_path / "lstm.tflite")
    file = tfopt.TFLiteModel(tmp_path / "lstm.tflite")
    assert "UNIDIRECTIONAL_SEQUENCE_LSTM" in [op.name for op in file.op_types()]
    np.testing.assert_allclose(file.predict(x), model.predict(x, verbose=0), atol=1e-5)


def test_the_door_of_each_verb_leads_to_tfmot(tmp_path):
    import tfopt

    layers = [tf_keras.layers.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1)), tf_keras.layers.Flatten()]
    model = tf_keras.Sequential([*layers, tf_keras.layers.Dense(3)])
    x = np.random.default_rng(0).normal(size=(32, 8, 8, 1)).astype("float32")
    pruned = tfopt.prune(model, tfopt.PolynomialDecay(0.0, 0.75, 0, 4, frequency=1))
    assert {type(layer).__module__.split(".")[0] for layer in pruned.layers} == {"tensorflow_model_optimization"}
    pruned.compile("adam", "mse")
    pruned.fit(x, np.zeros((32, 3)), batch_size=4, verbose=0)
    plain = tfopt.strip(pruned)
    assert [int((layer.kernel.numpy() == 0).sum()) for layer in (plain.layers[0], plain.layers[2])] == [27, 324]
    quantized = tfopt.quantize(plain)
    quantized.compile("adam", "mse")
    quantized.fit(x, np.zeros((32, 3)), batch_size=4, epochs=4, verbose=0)
    export = tfopt.export_tflite(quantized, tmp_path / "q.tflite")
    assert export.quantization == "int8"
    assert tfopt.TFLiteModel(tmp_path / "q.tflite").float_compute_ops() == ()
    options = {"batch_size": None, "input_type": "int8", "output_type": "uint8", "metadata": {"name": "both"}}
    tfopt.export_tflite({"a": quantized, "b": quantized}, tmp_path / "both.tflite", **options)
    file = tfopt.TFLiteModel(tmp_path / "both.tflite", signature="b")
    assert (file.inputs[0].dtype, file.outputs[0].dtype, file.inputs[0].shape[0]) == ("int8", "uint8", None)
    np.testing.assert_allclose(file.predict(x), quantized.predict(x, verbose=0), atol=2.01 * file.output_steps()[0])
    with pytest.raises(UnsupportedModelError, match="port it to Keras 3"):
        tfopt.calibrate(quantized, x)
