"""Every verb that takes data takes it in each form in which `fit` does, with the same outcome."""

import keras
import named
import numpy as np
import pytest
from named import net

import tfopt

NAMES = {1: ("image",), 2: ("meta", "image"), 3: ("meta", "age", "image")}
FORMS = [
    ("arrays", "tuple", False),
    ("arrays", "list", True),
    ("arrays", "more", True),
    ("dataset", "tuple", False),
    ("dataset", "dict", True),
    ("pydataset", "list", True),
    ("generator", "tuple", True),
]


def model(names):
    keras.utils.set_random_seed(1)
    made = net(names, 8)
    made.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return made


def calibrated(names, data, path):
    return tfopt.calibrate(tfopt.quantize(model(names)), data).predict(named.arrays(names), verbose=0)


def errors(names, data, path):
    quantized = tfopt.calibrate(tfopt.quantize(model(names)), named.arrays(names))
    return [row.alone_db for row in tfopt.quantization_errors(quantized, data).layers]


def suggested(names, data, path):
    return list(tfopt.suggest_float_layers(model(names), data, max_layers=1))


def found(names, data, path):
    options = {"metric": "sparse_categorical_crossentropy", "sparsities": (0.25, 0.5), "verbose": 0}
    return [trial.score for trial in tfopt.find_sparsity(model(names), data, 10.0, **options).trials]


def curves(names, data, path):
    return tfopt.sensitivity(model(names), data, sparsities=(0.5,), verbose=0).to_dict()["layers"]


def ranked(names, data, path):
    features = tfopt.rank_features(model(names), data, metric="sparse_categorical_crossentropy").features
    return [(feature.input, feature.index, feature.importance) for feature in features]


def compared(names, data, path):
    return tfopt.compare({"a": model(names)}, data)["a"].scores


def exported(names, data, path):
    kind = "none" if hasattr(data, "__next__") else "int8"
    tfopt.export_tflite(model(names), path, kind, data=data)
    return tfopt.TFLiteModel(path).predict(named.arrays(names)) if kind == "int8" else None


def distilled(names, data, path):
    cache = tfopt.cache_teacher(model(names), data, batch_size=8, shuffle=False, verbose=0)
    distiller = tfopt.Distiller(net(names, 2), None)
    distiller.compile(keras.optimizers.SGD(0.0))
    return distiller.fit(cache, verbose=0).epoch


VERBS = [calibrated, errors, suggested, found, curves, ranked, compared, exported, distilled]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.__name__)
@pytest.mark.parametrize("count", NAMES)
def test_each_verb_takes_each_form(verb, count, tmp_path):
    names = NAMES[count]
    want = None
    for wrapped, form, weights in FORMS:
        data = named.WRAPPED[wrapped](named.parts_of(names, form, weights))
        got = verb(names, data, tmp_path / "model.tflite")
        if want is None:
            want = got
        elif got is not None:
            keras.tree.map_structure(same, got, want)


def same(got, want):
    if isinstance(want, (str, type(None))):
        assert got == want
    else:
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("count", NAMES)
def test_weights_count_in_fine_tuning(count):
    """What has no weight teaches nothing: the same model comes out whatever its labels are."""
    x, y, weights = named.arrays(NAMES[count]), named.labels(), np.where(np.arange(named.SAMPLES) < 12, 1.0, 0.0)
    other = np.where(weights > 0, y, (y + 1) % 3)
    kernels = []
    for labels in (y, other):
        choice = tfopt.find_sparsity(
            model(NAMES[count]), (x, labels, weights), 1.0, sparsities=(0.5,), finetune=1, verbose=0,
            validation_data=(x, y),
        )  # fmt: skip
        kernels.append(choice.model.get_weights())
    for one, two in zip(*kernels, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_contenders_are_asked_by_name(tmp_path):
    one, two = net(("image", "meta"), title="one"), net(("meta", "image"), title="two", form=dict)
    three = net(("meta", "image"), title="three")
    x = named.arrays(("image", "meta"))
    path = tmp_path / "three.tflite"
    tfopt.export_tflite(three, path)
    want = [(each.predict(x, verbose=0).argmax(-1) == named.labels()).mean() for each in (one, two, three, three)]
    fused = tfopt.fuse([two, one])
    contenders = {"one": one, "two": two, "three": three, "file": path, "fused": fused}
    for given in (x, list(x.values()), tuple(x.values())):
        comparison = tfopt.compare(contenders, (given, named.labels()))
        assert [row.scores["accuracy"] for row in comparison.rows[:4]] == pytest.approx(want)
        members = {member.name: member.score for member in comparison.ensembles[0].members}
        assert members == pytest.approx({"one": want[0], "two": want[1]})


def test_files_are_compared_by_name(tmp_path):
    model, other = net(("image", "meta"), title="one"), net(("meta", "image"), title="two")
    other.set_weights(model.get_weights())
    own = tmp_path / "other.tflite"
    tfopt.export_tflite(other, own)
    for compared in (other, own):
        export = tfopt.export_tflite(model, tmp_path / "model.tflite", compare_with=compared)
        assert export.comparison[0].mean_difference < 1e-5
