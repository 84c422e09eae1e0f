"""Cascades against numpy: answers, what is skipped, thresholds, files."""

import keras
import named
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

import tfopt
from tfopt.core.errors import FileError, InvalidArgumentError, TargetNotMetError, UnsupportedModelError
from tfopt.core.models.graph import read
from tfopt.core.models.macs import model_macs
from tfopt.deploy.cascade import TFLiteCascade, export_cascade
from tfopt.fusion import Cascade, CascadeSelection
from tfopt.fusion.fuse import fuse
from tfopt.fusion.thresholds import _cheapest, fit_thresholds

CLASSES, FEATURES = 3, 6


@keras.saving.register_keras_serializable(package="tests")
class CountRows(kl.Layer):
    """Counts the samples that it sees outside of training."""

    def build(self, input_shape):
        self.rows = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="rows")

    def call(self, inputs):
        self.rows.assign_add(tf.shape(inputs)[0])
        return inputs


@keras.saving.register_keras_serializable(package="tests")
class Scales(kl.Layer):
    """A layer of whose MACs nobody knows."""

    def build(self, input_shape):
        self.matrix = self.add_weight(shape=(FEATURES, FEATURES), name="matrix")

    def call(self, inputs):
        return inputs @ self.matrix


def classifier(units, seed, name="net", ending="softmax", scale=3.0, count=False, classes=CLASSES):
    generator = np.random.default_rng(seed)
    layers = [CountRows(name="count")] if count else []
    layers += [kl.Dense(units, "tanh", name="hidden"), kl.Dense(classes, ending, name="outputs")]
    model = keras.Sequential([keras.Input((FEATURES,), name="x"), *layers], name=name)
    for layer in model.layers[-2:]:
        layer.set_weights([generator.normal(0, scale / 2, weight.shape) for weight in layer.weights])
    return model


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(80, FEATURES)).astype("float32")


def softmax(values):
    exponentials = np.exp(values - values.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def oracle(answers, thresholds, sureness=lambda p: p.max(-1)):
    """Answers of the cascade and the stage that gives each, sample by sample."""
    chosen = []
    for sample in range(len(answers[0])):
        stage = 0
        while stage < len(thresholds) and sureness(answers[stage][sample]) < thresholds[stage]:
            stage += 1
        chosen.append(stage)
    return np.array([answers[stage][i] for i, stage in enumerate(chosen)]), np.array(chosen)


def middle(models, x):
    """Thresholds that about half of the samples reach in each model but the last."""
    return [float(np.median(answers.max(-1))) for answers in predicted(models[:-1], x)]


def predicted(models, x):
    return [model.predict(x, verbose=0) for model in models]


def test_three_stages_answer_as_by_hand(x):
    models = [classifier(2, 1, "a"), classifier(4, 2, "b"), classifier(8, 3, "c")]
    thresholds = middle(models, x)
    cascade = fuse(models, "cascade", thresholds=thresholds)
    expected, stages = oracle(predicted(models, x), thresholds)
    assert sorted(set(stages)) == [0, 1, 2]
    np.testing.assert_allclose(cascade.predict(x, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(cascade(x), expected, atol=1e-6)
    np.testing.assert_array_equal(cascade.answered_by(x), stages)
    assert cascade.thresholds == tuple(thresholds)
    assert [layer.name for layer in cascade.layers] == ["x", "a", "b", "c", "fusion"]
    assert not cascade.trainable_weights


def test_predict_gives_the_next_model_only_the_rows_it_needs(x):
    models = [classifier(2, seed, name, count=True) for seed, name in ((1, "a"), (2, "b"), (3, "c"))]
    thresholds = middle(models, x)
    cascade = fuse(models, "cascade", thresholds=thresholds)
    _, stages = oracle(predicted(models, x), thresholds)
    counters = [layer.get_layer("count").rows for layer in cascade.layers if isinstance(layer, keras.Model)]
    for counter in counters:
        counter.assign(0)
    cascade.predict(x, batch_size=len(x), verbose=0)
    assert [int(counter) for counter in counters] == [80, (stages > 0).sum(), (stages > 1).sum()]
    assert 0 < (stages > 1).sum() < (stages > 0).sum() < 80
    cascade.predict(x[stages == 0], batch_size=80, verbose=0)
    assert int(counters[1]) == (stages > 0).sum(), "a batch of sure samples does not reach the second model"


def test_every_form_of_data_gives_the_same(x):
    models = [classifier(2, 1), classifier(8, 2)]
    cascade = fuse(models, "cascade", thresholds=[0.8])
    assert [layer.name for layer in cascade.layers[1:]] == ["net", "net_1", "fusion"]
    expected = cascade.predict(x, verbose=0)
    batches = tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(32)
    for data, options in ((batches, {}), (iter(list(batches)), {}), ({"x": x}, {}), (x, {"batch_size": 7})):
        np.testing.assert_allclose(cascade.predict(data, verbose=0, **options), expected, atol=1e-6)
    np.testing.assert_allclose(cascade.predict(batches, steps=2), expected[:64], atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="shape"):
        cascade.predict(x[:, :2])


def test_several_inputs(x):
    def pair(units, seed):
        left, right = keras.Input((2,), name="left"), keras.Input((4,), name="right")
        model = classifier(units, seed)
        return keras.Model({"left": left, "right": right}, model(kl.Concatenate()([left, right])), name=f"pair{units}")

    models, data = [pair(2, 1), pair(8, 2)], {"right": x[:, 2:], "left": x[:, :2]}
    cascade = fuse(models, "cascade", thresholds=[0.8])
    expected, stages = oracle(predicted(models, data), [0.8])
    np.testing.assert_allclose(cascade.predict(data, verbose=0), expected, atol=1e-6)
    np.testing.assert_array_equal(cascade.answered_by(data), stages)
    assert 0 < stages.sum() < len(x)


def test_logits_are_compared_by_their_softmax(x):
    models = [classifier(2, 1, ending=None), classifier(8, 2, ending=None)]
    expected, stages = oracle(predicted(models, x), [0.8], lambda logits: softmax(logits).max(-1))
    cascade = fuse(models, "cascade", thresholds=[0.8])
    assert 0 < stages.mean() < 1
    np.testing.assert_allclose(cascade.predict(x, verbose=0), expected, atol=1e-5)
    np.testing.assert_array_equal(cascade.answered_by(x), stages)


def test_a_single_probability_is_sure_on_both_sides(x):
    models = [classifier(2, 1, ending="sigmoid", classes=1), classifier(8, 2, ending="sigmoid", classes=1)]
    expected, stages = oracle(predicted(models, x), [0.8], lambda p: max(p[0], 1 - p[0]))
    cascade = fuse(models, "cascade", thresholds=[0.8])
    assert predicted(models, x)[0][stages == 0].min() < 0.2
    np.testing.assert_array_equal(cascade.answered_by(x), stages)
    np.testing.assert_allclose(cascade.predict(x, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(("threshold", "stage"), [(0.0, 0), (2.0, 1), (float("inf"), 1)])
def test_the_ends_of_the_scale(x, threshold, stage):
    models = [classifier(2, 1), classifier(8, 2)]
    cascade = fuse(models, "cascade", thresholds=[threshold])
    np.testing.assert_allclose(cascade.predict(x, verbose=0), predicted(models, x)[stage], atol=1e-6)


def test_it_saves_and_loads_as_one_file(x, tmp_path):
    cascade = fuse([classifier(2, 1), classifier(8, 2)], "cascade", thresholds=[0.8])
    cascade.save(tmp_path / "cascade.keras")
    loaded = keras.models.load_model(tmp_path / "cascade.keras")
    assert isinstance(loaded, Cascade)
    assert loaded.thresholds == (0.8,)
    np.testing.assert_array_equal(loaded.answered_by(x), cascade.answered_by(x))
    np.testing.assert_allclose(loaded.predict(x, verbose=0), cascade.predict(x, verbose=0), atol=1e-6)


def test_it_prunes_quantizes_and_evaluates_with_no_special_code(x):
    cascade = fuse([classifier(8, 1), classifier(16, 2)], "cascade", thresholds=[0.8])
    y = np.arange(len(x)) % CLASSES
    cascade.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    accuracy = cascade.evaluate(x, y, verbose=0, return_dict=True)["accuracy"]
    assert accuracy == pytest.approx((cascade.predict(x, verbose=0).argmax(-1) == y).mean())
    pruned = tfopt.prune(cascade, sparsity=0.5)
    assert isinstance(pruned, Cascade)
    np.testing.assert_allclose(pruned.predict(x, verbose=0), pruned(x), atol=1e-6)
    with pytest.warns(UserWarning, match="a cascade compares probabilities with its thresholds"):
        quantized = tfopt.calibrate(tfopt.quantize(cascade), x)
    assert isinstance(quantized, Cascade)
    np.testing.assert_allclose(quantized.predict(x, verbose=0), quantized(x), atol=1e-6)
    assert (quantized.answered_by(x) == cascade.answered_by(x)).mean() > 0.9
    assert sum(model_macs(read(cascade)).values()) == 8 * 6 + 8 * 3 + 16 * 6 + 16 * 3


def test_mixed_precision_answers_in_float32(x):
    def half(units, seed):
        model = classifier(units, seed)
        layers = [kl.Dense(units, "tanh", dtype="mixed_float16"), kl.Dense(CLASSES, "softmax", dtype="mixed_float16")]
        copy = keras.Sequential([keras.Input((FEATURES,)), *layers])
        copy.set_weights(model.get_weights())
        return copy

    models = [half(2, 1), half(8, 2)]
    cascade = fuse(models, "cascade", thresholds=[0.8])
    answers = cascade.predict(x, verbose=0)
    assert answers.dtype == "float32"
    np.testing.assert_allclose(answers, cascade(x), atol=2e-3)
    expected, stages = oracle([p.astype("float32") for p in predicted(models, x)], [0.8])
    np.testing.assert_array_equal(cascade.answered_by(x), stages)
    np.testing.assert_allclose(answers, expected, atol=2e-3)


def test_wrong_arguments_are_refused(x):
    pair = [classifier(2, 1), classifier(8, 2)]
    for thresholds in (None, [], [0.5, 0.5], [-0.1], ["high"], 0.5, [float("nan")], [True]):
        with pytest.raises(InvalidArgumentError):
            fuse(pair, "cascade", thresholds=thresholds)
    with pytest.raises(InvalidArgumentError, match="whole models"):
        fuse(pair, "cascade", thresholds=[0.5], trainable=True)
    two = keras.Input((FEATURES,))
    with pytest.raises(InvalidArgumentError, match="one output"):
        fuse([keras.Model(two, [kl.Dense(3)(two), kl.Dense(3)(two)])] * 2, "cascade", thresholds=[0.5])
    with pytest.raises(InvalidArgumentError, match="must answer with a class"):
        fuse([classifier(2, 1, ending=None, classes=1)] * 2, "cascade", thresholds=[0.5])
    with pytest.raises(InvalidArgumentError, match="one of several classes"):
        fuse([classifier(2, 1, ending="sigmoid")] * 2, "cascade", thresholds=[0.5])
    with pytest.raises(InvalidArgumentError, match="one answer a sample"):
        CascadeSelection([0.5])([np.ones((1, 2, 3)), np.ones((1, 2, 3))])


# Thresholds.


def exhaustive(right, sure, macs, wanted):
    """The least mean MACs over all cuts of a cascade of two or three models, by brute force."""
    cuts = [np.append(np.unique(row), np.inf) for row in sure]
    best = None
    for front in cuts[0] if len(sure) == 2 else [None]:
        for last in cuts[-1]:
            stage_of = np.full(right.shape[1], len(right) - 1)
            stage_of[sure[-1] >= last] = len(right) - 2
            if front is not None:
                stage_of[sure[0] >= front] = 0
            hits = right[stage_of, np.arange(right.shape[1])].mean()
            cost = np.cumsum(macs)[stage_of].mean()
            if hits >= wanted - 1e-9 and (best is None or cost < best):
                best = cost
    return best


def cost_of(thresholds, right, sure, macs):
    stage_of = np.full(right.shape[1], len(right) - 1)
    for stage in reversed(range(len(thresholds))):
        stage_of[sure[stage] >= np.float32(thresholds[stage])] = stage
    return np.cumsum(macs)[stage_of].mean(), right[stage_of, np.arange(right.shape[1])].mean()


@given(st.integers(0, 10**6), st.integers(2, 3), st.booleans())
@settings(deadline=None, max_examples=40)
def test_thresholds_are_the_cheapest_that_do(seed, models, ties):
    generator = np.random.default_rng(seed)
    right = generator.random((models, 30)) < np.array([0.6, 0.75, 0.9])[:models, None]
    sure = generator.random((models - 1, 30)).astype("float32")
    sure = sure.round(1) if ties else sure
    macs = np.array([1.0, 4.0, 10.0])[:models]
    wanted = right[-1].mean()
    thresholds = _cheapest(right, sure, macs, wanted)
    cost, accuracy = cost_of(thresholds, right, sure, macs)
    assert accuracy >= wanted
    assert cost == pytest.approx(exhaustive(right, sure, macs, wanted))


def test_the_fit_says_what_the_cascade_does(x):
    models = [classifier(2, 1, "cheap", scale=4.0), classifier(64, 2, "large")]
    y = predicted(models, x)[1].argmax(-1)
    y[::9] = (y[::9] + 1) % CLASSES
    fit = fit_thresholds(models, x, y, accuracy=0.8)
    cascade = fuse(models, "cascade", thresholds=fit.thresholds)
    answers, stages = cascade.predict(x, verbose=0), cascade.answered_by(x)
    assert fit.accuracy == pytest.approx((answers.argmax(-1) == y).mean())
    assert fit.accuracy >= 0.8
    macs = [2 * FEATURES + 2 * CLASSES, 64 * FEATURES + 64 * CLASSES]
    assert [stage.macs for stage in fit.stages] == macs
    assert fit.mean_macs == pytest.approx(macs[0] + macs[1] * (stages == 1).mean())
    assert [stage.share for stage in fit.stages] == pytest.approx([(stages == 0).mean(), (stages == 1).mean()])
    assert 0 < fit.stages[0].share < 1
    assert fit.stages[0].accuracy == pytest.approx((answers.argmax(-1) == y)[stages == 0].mean())
    assert fit.stages[1].accuracy_alone == pytest.approx(1 - 9 / 80)
    text = str(fit)
    assert f"{100 * fit.stages[0].share:.1f} %" in text
    assert "on the mean" in text
    assert "<table>" in fit._repr_html_()


def test_an_accuracy_out_of_reach_says_how_near_it_came(x):
    models = [classifier(2, 1), classifier(8, 2)]
    y = (predicted(models, x)[1].argmax(-1) + 1) % CLASSES
    with pytest.raises(TargetNotMetError, match="is the best found"):
        fit_thresholds(models, x, y, accuracy=0.99)
    for accuracy in (1.5, -1, "high"):
        with pytest.raises(InvalidArgumentError):
            fit_thresholds(models, x, y, accuracy=accuracy)
    with pytest.raises(InvalidArgumentError):
        fit_thresholds(models, x, np.full(len(x), CLASSES))
    own = keras.Sequential([keras.Input((FEATURES,)), Scales(), *models[0].layers])
    with pytest.raises(UnsupportedModelError, match="MACs"):
        fit_thresholds([own, models[1]], x, y)


# Files.


@pytest.mark.parametrize("ending", ["softmax", None])
def test_files_answer_as_the_cascade(x, tmp_path, ending):
    cascade = fuse([classifier(2, 1, ending=ending), classifier(8, 2, ending=ending)], "cascade", thresholds=[0.8])
    exports = export_cascade(cascade, tmp_path, data=x, metadata={"name": "pair"})
    assert [export.path.name for export in exports] == ["fused_1.tflite", "fused_2.tflite"]
    files = TFLiteCascade([export.path for export in exports])
    assert files.thresholds == (0.8,)
    assert files.stages[0].metadata["name"] == "pair"
    np.testing.assert_allclose(files.predict(x), cascade.predict(x, verbose=0), atol=1e-5)
    np.testing.assert_array_equal(files.answered_by(x), cascade.answered_by(x))
    y = np.arange(len(x)) % CLASSES
    assert files.evaluate(x, y)["accuracy"] == pytest.approx((cascade.predict(x, verbose=0).argmax(-1) == y).mean())
    assert files.size_bytes == sum(export.size_bytes for export in exports)


def test_files_run_only_the_rows_they_need(x, tmp_path, monkeypatch):
    cascade = fuse([classifier(2, 1), classifier(8, 2)], "cascade", thresholds=[0.8])
    files = TFLiteCascade([export.path for export in export_cascade(cascade, tmp_path)])
    seen = []
    original = type(files.stages[1]).predict
    monkeypatch.setattr(
        type(files.stages[1]), "predict", lambda self, x, **rest: seen.append(len(x[0])) or original(self, x, **rest)
    )
    stages = files.answered_by(x)
    assert seen == [len(x), (stages == 1).sum()]


def test_quantized_stages_export_as_integers(x, tmp_path):
    cascade = fuse([classifier(8, 1), classifier(32, 2)], "cascade", thresholds=[0.8])
    with pytest.warns(UserWarning, match="thresholds"):
        quantized = tfopt.calibrate(tfopt.quantize(cascade), x)
    files = TFLiteCascade([export.path for export in export_cascade(quantized, tmp_path, data=x)])
    assert all(not stage.float_compute_ops() for stage in files.stages)
    assert (files.predict(x).argmax(-1) == cascade.predict(x, verbose=0).argmax(-1)).mean() > 0.9


def test_files_that_do_not_go_together_are_refused(x, tmp_path):
    cascade = fuse([classifier(2, 1), classifier(8, 2)], "cascade", thresholds=[0.8])
    first, second = (export.path for export in export_cascade(cascade, tmp_path))
    for paths in ([second, first], [first], []):
        with pytest.raises(InvalidArgumentError):
            TFLiteCascade(paths)
    with pytest.raises(InvalidArgumentError, match="one threshold for each file but the last"):
        TFLiteCascade([first, second], [0.5, 0.5], from_logits=False)
    (tmp_path / "other").mkdir()
    other = fuse([classifier(4, 7), classifier(8, 8)], "cascade", thresholds=[0.9], name="other")
    _, of_another = (export.path for export in export_cascade(other, tmp_path / "other"))
    with pytest.raises(InvalidArgumentError, match="from one export of one cascade"):
        TFLiteCascade([first, of_another])
    assert TFLiteCascade([second, first], [0.5], from_logits=False).predict(x).shape == (80, CLASSES)
    with pytest.raises(InvalidArgumentError, match="takes a cascade"):
        export_cascade(classifier(2, 1), tmp_path)
    with pytest.raises(FileError):
        export_cascade(cascade, tmp_path / "nowhere")


def test_files_with_inputs_in_another_order_are_asked_by_name(tmp_path):
    models = [named.net(("image", "meta"), title="one"), named.net(("meta", "image"), title="two")]
    for model in models:
        tfopt.export_tflite(model, tmp_path / f"{model.name}.tflite")
    files = TFLiteCascade([tmp_path / "one.tflite", tmp_path / "two.tflite"], [2.0], from_logits=False)
    x = named.arrays(("image", "meta"))
    for inputs in (x, [x[tensor.name] for tensor in files.stages[0].inputs]):
        np.testing.assert_allclose(files.predict(inputs), models[1].predict(x, verbose=0), atol=1e-5)
