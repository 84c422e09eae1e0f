"""Inputs and outputs of models to be fused are told by name; masks go through."""

import keras
import named
import numpy as np
import pytest
from keras import layers as kl
from named import net

import tfopt
from tfopt.core.errors import InvalidArgumentError
from tfopt.fusion.layers import ParallelFusion

TWO, THREE = ("image", "meta"), ("age", "image", "meta")
SWAPPED = [
    ([net(TWO, title="one"), net(TWO[::-1], title="two")], TWO),
    ([net(TWO[::-1], title="one"), net(TWO, title="two", form=dict)], TWO),
    ([net(THREE, title="one"), net(("meta", "age", "image"), title="two"), net(THREE[::-1], title="three")], THREE),
]


def called(model, x):
    return keras.ops.convert_to_numpy(model(dict(x), training=False))


@pytest.mark.parametrize("how", ["mean", "max", "product", "concat", "vote", "cascade", "weighted"])
@pytest.mark.parametrize(("models", "names"), SWAPPED)
def test_fuse_connects_inputs_by_name(models, names, how):
    options = {"thresholds": [0.5] * (len(models) - 1)} if how == "cascade" else {}
    fused, x = tfopt.fuse(models, how, **options), named.arrays(names)
    single = [called(model, x) for model in models]
    product = np.prod(single, 0)
    want = {
        "max": lambda: np.max(single, 0),
        "product": lambda: product / product.sum(-1, keepdims=True),
        "concat": lambda: np.concatenate(single, -1),
        "cascade": lambda: first_sure(single, 0.5),
    }.get(how, lambda: np.mean(single, 0))()
    np.testing.assert_allclose(fused.predict(x, verbose=0), want, atol=1e-5)
    order = [own.name for own in models[0].inputs] if isinstance(models[0].input, list) else sorted(names)
    np.testing.assert_allclose(fused.predict([x[name] for name in order], verbose=0), want, atol=1e-5)


def first_sure(answers, threshold):
    rows = [
        next((a[i] for a in answers[:-1] if a[i].max() >= threshold), answers[-1][i]) for i in range(len(answers[0]))
    ]
    return np.array(rows)


def test_what_fuse_cannot_tell():
    one, other = net(TWO, title="one"), unnamed()
    with pytest.raises(InvalidArgumentError, match="of the same names, or of shapes that tell"):
        tfopt.fuse([one, other])
    assert len(tfopt.fuse([one, other], inputs="separate").inputs) == 4
    assert len(tfopt.fuse([unnamed(), unnamed()]).inputs) == 2  # without names it is their order
    again = tfopt.fuse([tfopt.fuse([unnamed(), unnamed()]), unnamed()])
    assert len(again.inputs) == 2


def unnamed():
    x = [keras.Input((4,)), keras.Input((4,))]
    return keras.Model(x, kl.Dense(3, "softmax")(kl.Concatenate()([x[0], kl.Rescaling(10.0)(x[1])])))


def test_outputs_in_a_list_are_fused_by_name():
    def model(*names):
        x = keras.Input((4,))
        return keras.Model(x, [kl.Dense(2, name=name)(x) for name in names])

    one, two, x = model("age", "height"), model("height", "age"), np.ones((3, 4), "float32")
    age, height = tfopt.fuse([one, two]).predict(x, verbose=0)
    (first_age, first_height), (second_height, second_age) = (each.predict(x, verbose=0) for each in (one, two))
    np.testing.assert_allclose(age, (first_age + second_age) / 2, atol=1e-6)
    np.testing.assert_allclose(height, (first_height + second_height) / 2, atol=1e-6)


def swapped_classifiers():
    models = [net(TWO, title="one"), net(TWO[::-1], title="two")]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return models


@pytest.mark.parametrize("form", ["dict", "list"])
@pytest.mark.parametrize("held_out", [False, True])
def test_stack_trains_and_connects_by_name(form, held_out):
    x, y = named.arrays(TWO), named.labels()
    given = x if form == "dict" else list(x.values())
    fit = {"validation_data": (given, y)} if held_out else {}
    result = tfopt.stack(swapped_classifiers(), given, y, folds=2, epochs=2, verbose=0, fit=fit)
    stacked = result.model
    for name in ("one", "two"):
        branch = stacked.get_layer(name)
        inside = keras.Model(stacked.inputs, branch._inbound_nodes[-1].output_tensors[0])
        np.testing.assert_allclose(called(inside, x), called(branch, x), atol=1e-6)
    assert result.out_of_fold.shape == (named.SAMPLES, 6)


def test_stack_predicts_out_of_fold_by_name():
    """With a learning rate of 0 the base models stay what their seeds made them, and can be asked again."""
    x, y = named.arrays(TWO), named.labels()
    models = swapped_classifiers()
    for model in models:
        model.compile(keras.optimizers.SGD(0.0), "sparse_categorical_crossentropy")
    by_dict, by_list = (
        tfopt.stack(models, given, y, folds=2, epochs=1, verbose=0).out_of_fold for given in (x, list(x.values()))
    )
    np.testing.assert_allclose(by_dict, by_list, atol=1e-7)


def test_fit_weights_and_thresholds_ask_by_name():
    models = [net(TWO, title="one"), net(TWO[::-1], title="two")]
    x = named.arrays(TWO, 60)
    y = called(models[1], x).argmax(-1)
    for given in (x, list(x.values()), tuple(x.values())):
        fitted = tfopt.fit_weights(models, given, y)
        assert fitted.singles[1].score == 1.0
        assert fitted.singles[0].score == pytest.approx((called(models[0], x).argmax(-1) == y).mean())
        assert tfopt.fit_thresholds(models, given, y).stages[1].accuracy_alone == 1.0


def test_weights_are_not_averaged_over_inputs_of_other_places():
    def model(names):
        x = [keras.Input((4,), name=name) for name in names]
        return keras.Model(x, kl.Dense(2)(kl.Concatenate()(x)))

    with pytest.raises(InvalidArgumentError, match="inputs in one order.*\\['image', 'meta'\\].*\\['meta', 'image'\\]"):
        tfopt.average_weights([model(TWO), model(TWO[::-1])])
    assert tfopt.average_weights([model(TWO), model(TWO)]).model


def tagger(units, name, recurrent=True):
    inputs = keras.Input((None,), dtype="int32")
    hidden = kl.Embedding(10, 4, mask_zero=recurrent)(inputs)
    hidden = kl.LSTM(units, return_sequences=True)(hidden) if recurrent else kl.Conv1D(units, 3, padding="same")(hidden)
    return keras.Model(inputs, kl.Dense(3, "softmax")(hidden), name=name)


@pytest.mark.parametrize("how", ["mean", "weighted", "max", "product", "gated", "vote", "concat"])
def test_padded_steps_do_not_count(how, tmp_path):
    x = np.random.default_rng(0).integers(1, 10, (8, 6))
    x[:, 3:] = 0
    x[0] = 0
    fused = tfopt.fuse([tagger(3, "one"), tagger(5, "two")], how)
    fused.save(tmp_path / "fused.keras")
    for model in (fused, keras.saving.load_model(tmp_path / "fused.keras")):
        predicted = model.predict(x, verbose=0)
        y = predicted.argmax(-1)
        y[x == 0] = (y[x == 0] + 1) % 3
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        loss, accuracy = model.evaluate(x, y, verbose=0)
        assert accuracy == 1.0
        if how not in ("concat", "max"):  # whose outputs do not sum to 1
            want = -np.log(np.take_along_axis(predicted, y[..., None], -1))[x > 0].mean()
            assert loss == pytest.approx(want, rel=1e-4)


def test_a_branch_without_a_mask_counts_all_steps_as_in_average():
    x = np.array([[1, 2, 0, 0]])
    models = [tagger(3, "one"), tagger(5, "two", recurrent=False)]
    inputs = keras.Input((None,), dtype="int32")
    average = keras.Model(inputs, kl.Average()([model(inputs) for model in models]))
    assert keras.src.backend.get_keras_mask(average(x)) is None
    assert keras.src.backend.get_keras_mask(tfopt.fuse(models)(x)) is None


def test_masks_of_other_grids_are_pooled():
    steps = keras.Input((4, 1))
    short = keras.Model(steps, kl.Masking()(kl.AveragePooling1D(2)(steps)))
    long = keras.Model(steps, kl.Masking()(steps))
    x = np.array([[[1.0], [0.0], [0.0], [0.0]]])
    fused = ParallelFusion()([short(x), long(x)])
    assert keras.src.backend.get_keras_mask(fused).numpy().tolist() == [[True, False]]
