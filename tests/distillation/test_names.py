"""Teachers get their inputs, and students their lessons, by name."""

import keras
import named
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl
from named import net

import tfopt
from tfopt import distillation as td
from tfopt.core.errors import InvalidArgumentError

TWO, THREE = ("image", "meta"), ("age", "image", "meta")


def called(model, x):
    return keras.ops.convert_to_numpy(model(dict(x), training=False))


def divergence(taught, learned):
    return float((taught * np.log(taught / learned)).sum(-1).mean())


def loss_of(distiller, data):
    distiller.compile(keras.optimizers.SGD(0.0))
    return distiller.fit(data, batch_size=named.SAMPLES, shuffle=False, verbose=0).history["loss"][0]


def distilled(student, teacher):
    return tfopt.Distiller(student, teacher, temperature=1.0, alpha=1.0)


def given(names, form):
    x = named.arrays(names)
    forms = {"dict": x, "list": list(x.values()), "tuple": tuple(x.values())}
    if form == "dataset":
        return tf.data.Dataset.from_tensor_slices((tuple(x.values()),)).batch(named.SAMPLES)
    return forms[form]


@pytest.mark.parametrize("form", ["dict", "list", "tuple", "dataset"])
@pytest.mark.parametrize("kind", [list, dict])
@pytest.mark.parametrize("names", [TWO, THREE], ids=len)
def test_the_teacher_is_asked_by_name(names, kind, form):
    student, teacher = net(names), net(names[::-1], 5, form=kind)
    x = named.arrays(names)
    want = divergence(called(teacher, x), called(student, x))
    assert loss_of(distilled(student, teacher), given(names, form)) == pytest.approx(want, rel=1e-4)


def test_several_teachers_each_have_their_order():
    student, teachers = net(THREE), [net(("meta", "age", "image"), 5), net(THREE, 4, form=dict), net(THREE[::-1], 6)]
    x = named.arrays(THREE)
    want = divergence(np.mean([called(teacher, x) for teacher in teachers], 0), called(student, x))
    assert loss_of(distilled(student, teachers), list(x.values())) == pytest.approx(want, rel=1e-4)


def test_features_and_evaluation_are_by_name_too():
    student, teacher = net(TWO, 3), net(TWO[::-1], 3)
    loss = td.FeatureMatching(student_layer=student.layers[-2].name, teacher_layer=teacher.layers[-2].name)
    distiller = tfopt.Distiller(student, teacher, loss, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0), evaluate_teacher=True)
    x = named.arrays(TWO)
    mine, theirs = (called(keras.Model(model.inputs, model.layers[-2].output), x) for model in (student, teacher))
    got = distiller.evaluate(list(x.values()), batch_size=named.SAMPLES, verbose=0, return_dict=True)
    assert got["distillation_loss"] == pytest.approx(((mine - theirs) ** 2).mean(), rel=1e-4)


@pytest.mark.parametrize("in_folder", [False, True])
@pytest.mark.parametrize("form", ["dict", "tuple"])
def test_a_cache_of_a_teacher_with_another_order(form, in_folder, tmp_path):
    student, teacher = net(TWO), net(TWO[::-1], 5)
    x = named.arrays(TWO[::-1])
    path = tmp_path / "cache" if in_folder else None
    cache = tfopt.cache_teacher(teacher, given(TWO[::-1], form), path, dtype="float32", batch_size=24, verbose=0)
    want = divergence(called(teacher, x), called(student, x))
    for one in (distilled(student, None), distilled(student, teacher)):
        one.compile(keras.optimizers.SGD(0.0))
        assert one.fit(cache, verbose=0).history["loss"][0] == pytest.approx(want, rel=1e-4)


def test_a_cache_for_a_student_of_other_names():
    x = [keras.Input((4,)), keras.Input((4,))]
    student = keras.Model(x, kl.Dense(3, "softmax")(kl.Concatenate()(x)))
    cache = tfopt.cache_teacher(net(TWO), list(named.arrays(TWO).values()), batch_size=24, verbose=0)
    distiller = distilled(student, None)
    distiller.compile("sgd")
    with pytest.raises(InvalidArgumentError, match="key for each input.*'image', 'meta'"):
        distiller.fit(cache, verbose=0)


def heads(units, *names):
    x = keras.Input((4,))
    hidden = kl.Dense(units, "tanh")(x)
    return keras.Model(x, [kl.Dense(3, "softmax", name=name)(hidden) for name in names])


@pytest.mark.parametrize("losses", [None, td.SoftTargets()])
@pytest.mark.parametrize("cached", [False, True])
def test_outputs_in_a_list_learn_by_name(losses, cached):
    student, teachers = heads(3, "age", "sex"), [heads(5, "sex", "age"), heads(6, "age", "sex")]
    x = named.arrays(["image"])["image"]
    age, sex = student.predict(x, verbose=0)
    (one_sex, one_age), (two_age, two_sex) = (teacher.predict(x, verbose=0) for teacher in teachers)
    want = divergence((one_age + two_age) / 2, age) + divergence((one_sex + two_sex) / 2, sex)
    data = tfopt.cache_teacher(teachers, x, dtype="float32", batch_size=24, verbose=0) if cached else x
    distiller = tfopt.Distiller(student, None if cached else teachers, losses, temperature=1.0, alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    got = distiller.fit(data, batch_size=24, verbose=0).history["loss"][0]
    assert got == pytest.approx(want, rel=1e-4)


def test_models_that_cannot_be_paired():
    inputs = [keras.Input((4,), name="a"), keras.Input((4,), name="b")]
    other = keras.Model(inputs, kl.Dense(3, "softmax")(kl.Concatenate()(inputs)))
    with pytest.raises(InvalidArgumentError, match="of the same names, or of shapes that tell"):
        tfopt.Distiller(net(TWO), other)
    with pytest.raises(InvalidArgumentError, match="same inputs"):
        tfopt.Distiller(net(TWO), net(THREE))
    with pytest.raises(InvalidArgumentError, match="Several teachers must get the same inputs"):
        tfopt.cache_teacher([net(TWO), net(THREE)], named.arrays(THREE), verbose=0)


def test_a_saved_distiller_still_asks_by_name(tmp_path):
    student, teacher = net(TWO), net(TWO[::-1], 5)
    x = named.arrays(TWO)
    distiller = distilled(student, teacher)
    distiller.compile(keras.optimizers.SGD(0.0))
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    want = divergence(called(teacher, x), called(student, x))
    got = loaded.fit(list(x.values()), batch_size=24, verbose=0).history["loss"][0]
    assert got == pytest.approx(want, rel=1e-4)
