"""`split_preprocessing`, and verbs that take the raw data of a whole model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import tfopt

WORDS = ["good", "bad", "long", "film", "town"]
TEXTS = np.array(["good film", "bad long film", "good town", "unknown town", "bad bad", "long"] * 4)
LABELS = np.arange(24) % 2


def text_model(seed=0):
    keras.utils.set_random_seed(seed)
    vectorize = kl.TextVectorization(max_tokens=12, output_sequence_length=4, name="vectorize")
    vectorize.adapt(TEXTS)
    inputs = keras.Input((), dtype="string", name="text")
    x = kl.Embedding(12, 8, name="embedding")(vectorize(inputs))
    x = kl.Dense(16, activation="relu", name="hidden")(kl.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, kl.Dense(2, activation="softmax", name="head")(x))


def table_model():
    keras.utils.set_random_seed(0)
    inputs = {
        "job": keras.Input((1,), dtype="string", name="job"),
        "zone": keras.Input((1,), dtype="int64", name="zone"),
        "numbers": keras.Input((3,), name="numbers"),
    }
    job = kl.StringLookup(vocabulary=["nurse", "smith"], output_mode="one_hot", name="jobs")(inputs["job"])
    zone = kl.Embedding(4, 5)(kl.IntegerLookup(vocabulary=[10, 20, 30], name="zones")(inputs["zone"]))
    x = kl.Concatenate()([job, kl.Flatten()(zone), inputs["numbers"]])
    return keras.Model(inputs, kl.Dense(2)(kl.Dense(8, "relu")(x)))


def table_data(count=20):
    generator = np.random.default_rng(0)
    return {
        "job": generator.choice(["nurse", "smith", "other"], (count, 1)),
        "zone": generator.choice([10, 20, 30, 40], (count, 1)),
        "numbers": generator.normal(size=(count, 3)).astype("float32"),
    }


def as_tensors(data):
    return {name: tf.constant(values) for name, values in data.items()}


def computed(model, x):
    return np.asarray(model(x, training=False))


def check_split(model, x):
    wanted = computed(model, x)
    preprocessing, rest = tfopt.split_preprocessing(model)
    np.testing.assert_array_equal(computed(rest, preprocessing(x)), wanted)
    assert all(tensor.dtype != "string" for tensor in rest.inputs)
    assert not preprocessing.trainable_weights
    assert len(rest.weights) == len([w for w in model.weights if w.dtype == "float32"])
    return preprocessing, rest


def test_text_is_cut_off_behind_the_vocabulary():
    model = text_model()
    preprocessing, rest = check_split(model, tf.constant(TEXTS))
    assert [(t.name, t.shape, t.dtype) for t in rest.inputs] == [("text", (None, 4), "int64")]
    assert [layer.name for layer in rest.layers[1:]] == ["embedding", "global_average_pooling1d", "hidden", "head"]
    order = model.get_layer("vectorize").get_vocabulary()
    wanted = [[order.index(word) if word in order else 1 for word in text.split()] for text in TEXTS]
    wanted = [row + [0] * (4 - len(row)) for row in wanted]
    assert preprocessing.predict(tf.constant(TEXTS), verbose=0).tolist() == wanted
    assert rest.get_layer("hidden") is not model.get_layer("hidden")


def test_inputs_of_a_dict_keep_their_names_and_numbers_go_through():
    data = as_tensors(table_data())
    preprocessing, rest = check_split(table_model(), data)
    made = {name: np.asarray(values) for name, values in preprocessing(data).items()}
    assert sorted(made) == ["job", "numbers", "zone"] == sorted(rest.input)
    jobs, zones = table_data()["job"][:, 0], table_data()["zone"][:, 0]
    assert made["job"].argmax(1).tolist() == [["other", "nurse", "smith"].index(job) for job in jobs]
    assert made["zone"][:, 0].tolist() == [[40, 10, 20, 30].index(zone) for zone in zones]
    np.testing.assert_array_equal(made["numbers"], table_data()["numbers"])


def test_an_input_that_two_layers_read_gives_one_input_for_each():
    inputs = keras.Input((2,), dtype="int64", name="ids")
    hashed = kl.Hashing(7, name="buckets")(inputs)
    x = kl.Concatenate()([kl.Embedding(7, 3)(hashed), kl.Embedding(10, 3)(inputs)])
    x_data = np.arange(10).reshape(5, 2)
    _, rest = check_split(keras.Model(inputs, x), tf.constant(x_data))
    assert [tensor.name for tensor in rest.inputs] == ["ids", "buckets"]


def test_sequential_models_stay_sequential():
    words = kl.StringLookup(vocabulary=WORDS)
    model = keras.Sequential([keras.Input((3,), dtype="string"), words, kl.Embedding(6, 4), kl.Flatten(), kl.Dense(2)])
    _, rest = check_split(model, tf.constant([["good", "film", "new"]] * 3))
    assert isinstance(rest, keras.Sequential)
    assert [type(layer) for layer in rest.layers] == [kl.Embedding, kl.Flatten, kl.Dense]


def test_nested_models_and_own_layers_are_cut_inside():
    class Reader(kl.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.words, self.embedding = kl.StringLookup(vocabulary=WORDS), kl.Embedding(6, 4)

        def call(self, x):
            return self.embedding(self.words(tf.strings.lower(x)))

    inner_input = keras.Input((3,), dtype="string")
    inner = keras.Model(inner_input, kl.Dense(4, name="dense")(Reader(name="reader")(inner_input)), name="inner")
    inputs = keras.Input((3,), dtype="string")
    model = keras.Model(inputs, kl.Dense(2, name="dense")(inner(inputs)))
    preprocessing, rest = check_split(model, tf.constant([["GOOD", "film", "new"]] * 3))
    assert preprocessing(tf.constant([["GOOD", "film", "new"]])).numpy().tolist() == [[1, 4, 0]]
    assert len({layer.name for layer in rest.layers}) == len(rest.layers)


def test_subclassed_models():
    class Tagger(keras.Model):
        def __init__(self):
            super().__init__()
            self.words, self.embedding = kl.StringLookup(vocabulary=WORDS), kl.Embedding(6, 4)
            self.head = kl.Dense(3)

        def call(self, x):
            return self.head(self.embedding(self.words(x)))

    model, x = Tagger(), tf.constant([["good", "film", "new"]] * 3)
    model(x)
    check_split(model, x)


def test_nothing_to_cut_off():
    with pytest.raises(tfopt.NothingToDoError, match="export_tflite"):
        tfopt.split_preprocessing(keras.Sequential([keras.Input((3,)), kl.Dense(2)]))


def test_weights_in_front_of_a_lookup_are_refused_and_leaving_it_out_works():
    inputs = keras.Input((3,))
    x = keras.ops.argmax(kl.Dense(4, name="scores")(inputs), axis=-1)
    labels = kl.IntegerLookup(vocabulary=[7, 8], name="labels")(keras.ops.cast(x, "int64"))
    model = keras.Model(inputs, kl.Embedding(3, 2)(labels))
    with pytest.raises(tfopt.UnsupportedModelError, match="'scores'.*keras.Model"):
        tfopt.split_preprocessing(model)
    tfopt.quantize(keras.Model(model.inputs, model.get_layer("scores").output))


def test_an_output_of_strings_is_refused():
    inputs = keras.Input((3,), dtype="string")
    lookup = kl.StringLookup(vocabulary=WORDS, name="words")(inputs)
    with pytest.raises(tfopt.UnsupportedModelError, match="output of 'words'"):
        tfopt.split_preprocessing(keras.Model(inputs, [lookup, kl.Embedding(6, 4)(lookup)]))


def test_the_refusal_of_export_names_the_layer_and_its_way_out_works(tmp_path):
    model = table_model()
    with pytest.raises(tfopt.UnsupportedModelError, match="'(jobs|zones)', '(jobs|zones)'.*split_preprocessing"):
        tfopt.export_tflite(model, tmp_path / "model.tflite")
    preprocessing, rest = tfopt.split_preprocessing(model)
    data = preprocessing.predict(as_tensors(table_data()), verbose=0)
    file = tfopt.TFLiteModel(tfopt.export_tflite(rest, tmp_path / "model.tflite", data=data).path)
    np.testing.assert_allclose(file.predict(data), computed(model, as_tensors(table_data())), atol=1e-5)


def test_ranges_from_raw_data_are_those_from_numbers(tmp_path):
    model = table_model()
    preprocessing, rest = tfopt.split_preprocessing(model)
    whole = tfopt.calibrate(tfopt.quantize(model), table_data())
    numbers = preprocessing.predict(as_tensors(table_data()), verbose=0)
    part = tfopt.calibrate(tfopt.quantize(rest), numbers)
    np.testing.assert_allclose(computed(whole, as_tensors(table_data())), computed(part, numbers), atol=1e-6)
    _, cut = tfopt.split_preprocessing(whole)
    export = tfopt.export_tflite(cut, tmp_path / "model.tflite", data=numbers)
    assert export.quantization == "int8"
    assert not tfopt.TFLiteModel(export.path).float_compute_ops()


def test_compare_gives_each_contender_what_it_reads(tmp_path):
    model = text_model()
    preprocessing, rest = tfopt.split_preprocessing(model)
    numbers = preprocessing.predict(tf.constant(TEXTS), verbose=0)
    file = tfopt.export_tflite(rest, tmp_path / "model.tflite", data=numbers).path
    comparison = tfopt.compare({"file": file, "whole": model, "both": (model, file), "rest": rest}, (TEXTS, LABELS))
    accuracy = float(np.mean(computed(model, tf.constant(TEXTS)).argmax(1) == LABELS))
    assert [row.scores["accuracy"] for row in comparison.rows] == [accuracy] * 4
    with pytest.raises(tfopt.InvalidArgumentError, match=r"real numbers.*preprocessing.predict"):
        tfopt.compare({"rest": rest}, (TEXTS, LABELS))


def test_find_sparsity_takes_raw_data():
    model = text_model()
    model.compile("adam", "sparse_categorical_crossentropy")
    options = {"sparsities": (0.25, 0.5), "max_drop": 1.0, "verbose": 0}
    whole = tfopt.find_sparsity(model, (TEXTS, LABELS), **options)
    preprocessing, rest = tfopt.split_preprocessing(model)
    part = tfopt.find_sparsity(rest, (preprocessing.predict(tf.constant(TEXTS), verbose=0), LABELS), **options)
    assert [trial.scores for trial in whole.trials] == [trial.scores for trial in part.trials]
    trained = tfopt.find_sparsity(model, (TEXTS, LABELS), finetune=1, **options)
    assert trained.sparsity == 0.5


def test_strings_for_numbers_and_numbers_for_strings_are_refused():
    with pytest.raises(tfopt.InvalidArgumentError, match="'text' takes strings"):
        tfopt.calibrate(tfopt.quantize(text_model()), np.ones(4))


@pytest.mark.parametrize("mode", ["one_hot", "multi_hot", "count"])
def test_encodings_of_integers_are_in_the_file(mode, tmp_path):
    keras.utils.set_random_seed(0)
    ids, numbers = keras.Input((1 if mode == "one_hot" else 3,), dtype="int32", name="ids"), keras.Input((4,), name="x")
    x = kl.Concatenate()([kl.CategoryEncoding(6, mode)(ids), numbers])
    model = keras.Model([ids, numbers], kl.Dense(3)(kl.Dense(8, "relu")(x)))
    generator = np.random.default_rng(0)
    data = [generator.integers(0, 6, (40, ids.shape[1])).astype("int32"), generator.normal(size=(40, 4))]
    data = {"ids": data[0], "x": data[1].astype("float32")}
    tfopt.export_tflite(model, tmp_path / "float.tflite", data=data)
    quantized = tfopt.calibrate(tfopt.quantize(model), data)
    file = tfopt.TFLiteModel(tfopt.export_tflite(quantized, tmp_path / "int8.tflite", data=data).path)
    assert not file.float_compute_ops()
    wanted = np.asarray(model([data["ids"], data["x"]]))
    assert np.abs(file.predict(data) - wanted).mean() < 0.02 * np.ptp(wanted)
