"""What a student takes from its teacher, against numpy indexing by hand and against structured pruning."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as kl

from tests import zoo
from tfopt.clustering.cluster import cluster
from tfopt.core.errors import InvalidArgumentError, NonFiniteError, NothingToDoError, UnsupportedModelError
from tfopt.distillation.initialization import init_from
from tfopt.editing.width import scale_width
from tfopt.pruning.prune import prune
from tfopt.pruning.shrink import shrink
from tfopt.quantization.quantize import quantize

MLP_INPUTS = 5


def mlp(*widths, name="mlp"):
    hidden = [kl.Dense(width, "relu") for width in widths[:-1]]
    return randomised(keras.Sequential([keras.Input((MLP_INPUTS,)), *hidden, kl.Dense(widths[-1])], name=name))


def residual_cnn(width, name):
    inputs = keras.Input((6, 6, 3))
    x = kl.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = skip = kl.ReLU(name="relu")(kl.BatchNormalization(name="bn")(x))
    x = kl.Conv2D(2 * width, 1, activation="relu", name="wide")(x)
    x = kl.Conv2D(width, 3, padding="same", name="narrow")(x)
    x = kl.Flatten(name="flat")(kl.Add(name="sum")([x, skip]))
    return randomised(keras.Model(inputs, kl.Dense(4, name="head")(x), name=name))


def residual_stack(width, blocks, name="stack", prefix=None):
    """A stem and so many residual blocks; with a prefix, its layers are named and numbered."""

    def named(part):
        return None if prefix is None else f"{prefix}{part}"

    x = inputs = keras.Input((width,))
    x = kl.Dense(width, "relu", name=named("stem"))(x)
    for block in range(blocks):
        y = kl.LayerNormalization(name=named(f"{block}_norm"))(x)
        y = kl.Dense(2 * width, "gelu", name=named(f"{block}_up"))(y)
        x = x + kl.Dense(width, name=named(f"{block}_down"))(y)
    x = kl.LayerNormalization(name=named("norm"))(x)
    return randomised(keras.Model(inputs, kl.Dense(3, name=named("head"))(x), name=name))


def randomised(model):
    generator = np.random.default_rng(sum(map(ord, model.name)))
    for weight in model.weights:
        low = 0.5 if weight.name in ("gamma", "moving_variance", "scale") else -1
        weight.assign(generator.uniform(low, 1.5 if low > 0 else 1, weight.shape))
    return model


def best(scores, count):
    """The places of the highest scores, in ascending order."""
    return np.sort(np.argsort(-np.asarray(scores), kind="stable")[:count])


def sums(kernel, axis):
    return np.abs(np.moveaxis(kernel, axis, 0)).reshape(kernel.shape[axis], -1).sum(1)


def taken(model):
    return {layer.path: layer for layer in model.init_report.layers}


def assert_weights(layer, *arrays):
    for weight, array in zip(layer.get_weights(), arrays, strict=True):
        np.testing.assert_array_equal(weight, np.asarray(array, "float32"))


def test_a_narrower_residual_cnn_takes_slices_that_fit_together():
    teacher, student = residual_cnn(8, "teacher"), residual_cnn(4, "student")
    before = zoo.state(student), zoo.state(teacher)
    result = init_from(student, teacher, verbose=0)
    stem, wide, narrow, head = (teacher.get_layer(name).get_weights() for name in ("stem", "wide", "narrow", "head"))
    rows = head[0].reshape(36, 8, 4)  # what Flatten makes of 6 x 6 positions
    skip = best(sums(stem[0], 3) + sums(wide[0], 2) + sums(narrow[0], 3) + sums(rows, 1), 4)
    inner = best(sums(wide[0], 3) + sums(narrow[0], 2), 8)
    assert_weights(result.get_layer("stem"), stem[0][..., skip])
    assert_weights(result.get_layer("bn"), *(weight[skip] for weight in teacher.get_layer("bn").get_weights()))
    assert_weights(result.get_layer("wide"), wide[0][:, :, skip][..., inner], wide[1][inner])
    assert_weights(result.get_layer("narrow"), narrow[0][:, :, inner][..., skip], narrow[1][skip])
    assert_weights(result.get_layer("head"), rows[:, skip].reshape(-1, 4), head[1])
    assert {layer.how for layer in taken(result).values()} == {"sliced"}
    for old, new in zip(before, (zoo.state(student), zoo.state(teacher)), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("name", ["sequential", "residual", "shared", "sequence"])
def test_it_takes_the_channels_that_structured_pruning_keeps(name):
    teacher = zoo.build(name)
    smaller = shrink(prune(teacher, sparsity=0.5, pattern="channel"))
    expected = [weight.numpy() for weight in smaller.weights]
    result = init_from(randomised(smaller), teacher, verbose=0)
    assert not result.init_report.kept
    for weight, array in zip(result.weights, expected, strict=True):
        np.testing.assert_array_equal(weight, array, weight.path)


@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None, print_blob=False)
def test_any_narrower_mlp_is_a_slice(widths, seed):
    keras.utils.set_random_seed(seed)
    teacher, student = mlp(6, 6, 6, 2, name="teacher"), mlp(*widths, 2, name="student")
    teacher.set_weights([np.random.normal(size=weight.shape) for weight in teacher.weights])
    result = init_from(student, teacher, by="order", verbose=0)
    kernels = [layer.kernel.numpy() for layer in teacher.layers]
    kept = [np.arange(MLP_INPUTS)]
    for width, first, second in zip(widths, kernels, kernels[1:], strict=False):
        kept.append(best(sums(first, 1) + sums(second, 0), width))
    kept.append(np.arange(2))
    for layer, old, rows, columns in zip(result.layers, teacher.layers, kept, kept[1:], strict=False):
        assert_weights(layer, old.kernel.numpy()[np.ix_(rows, columns)], old.bias.numpy()[columns])


@pytest.mark.parametrize("name", list(zoo.MODELS))
@pytest.mark.parametrize("by", ["auto", "name", "order"])
def test_the_same_architecture_becomes_the_teacher(name, by):
    teacher = zoo.build(name)
    student = randomised(keras.models.clone_model(teacher))
    result = init_from(student, teacher, by=by, verbose=0)
    x = zoo.inputs_for(teacher)
    for ours, theirs in zip(zoo.predictions(result, x), zoo.predictions(teacher, x), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert {layer.how for layer in taken(result).values()} == {"exact"}
    assert result.init_report.parameters == teacher.count_params()
    assert not result.compiled
    assert type(result) is type(student)


def test_scaled_widths_take_slices_of_every_layer():
    teacher = zoo.build("residual")
    result = init_from(scale_width(teacher, 0.5), teacher, verbose=0)
    assert not result.init_report.kept
    first = teacher.get_layer("pointwise").kernel.numpy()
    assert np.isin(result.get_layer("pointwise").kernel.numpy(), first).all()


@pytest.mark.parametrize("prefix", [None, "part"])
def test_fewer_blocks_take_every_k_th(prefix):
    teacher, student = residual_stack(6, 6, "deep", prefix), residual_stack(6, 2, "flat", prefix)
    result = init_from(student, teacher, verbose=0)
    dense, norms = (
        [[layer for layer in model.layers if isinstance(layer, kind)] for model in (teacher, result)]
        for kind in (kl.Dense, kl.LayerNormalization)
    )
    for ours, theirs in [(0, 0), (1, 1), (2, 2), (3, 7), (4, 8), (5, 13)]:  # blocks 0 and 3 of 0..5
        assert_weights(dense[1][ours], *dense[0][theirs].get_weights())
    for ours, theirs in [(0, 0), (1, 3), (2, 6)]:
        assert_weights(norms[1][ours], *norms[0][theirs].get_weights())
    blocks = [layer.block for layer in result.init_report.layers]
    assert blocks == [None, *[(1, 6)] * 3, *[(4, 6)] * 3, None, None]


def test_depth_and_width_together():
    teacher, student = residual_stack(8, 4, "deep"), residual_stack(4, 2, "flat", "own")
    teacher_inputs = keras.Input((4,))
    teacher = keras.Model(teacher_inputs, teacher(kl.Dense(8, name="adapter")(teacher_inputs)), name="deep")
    inner = teacher.get_layer("deep")
    result = init_from(student, teacher, by="order", verbose=0)
    up = [layer for layer in inner.layers if getattr(layer, "units", None) == 16]
    down = [layer for layer in inner.layers if getattr(layer, "units", None) == 8][1:]
    hidden = best(sums(up[2].kernel.numpy(), 1) + sums(down[2].kernel.numpy(), 0), 8)
    ours = result.get_layer("own1_up")
    np.testing.assert_array_equal(ours.bias, up[2].bias.numpy()[hidden])
    assert taken(result)["own1_up"].source == f"deep/{up[2].name}"
    assert np.isin(ours.kernel.numpy(), up[2].kernel.numpy()[:, hidden]).all()


def test_repeated_stages_of_one_width_are_told_apart_by_their_grid():
    def vgg(convolutions, name):
        x = inputs = keras.Input((8, 8, 4))
        for stage, count in enumerate(convolutions):
            for number in range(count):
                x = kl.Conv2D(4, 3, padding="same", name=f"s{stage}_c{number}")(x)
            x = kl.MaxPooling2D()(x)
        return randomised(keras.Model(inputs, kl.Dense(2, name="head")(kl.Flatten()(x)), name=name))

    result = init_from(vgg((1, 2), "small"), vgg((2, 4), "big"), verbose=0)
    sources = {path: layer.source for path, layer in taken(result).items()}
    assert sources == {"s0_c0": "s0_c0", "s1_c0": "s1_c0", "s1_c1": "s1_c2", "head": "head"}


def test_names_can_be_taken_at_their_word():
    teacher = residual_stack(6, 4, "deep", "part")
    student = residual_stack(6, 2, "flat", "part")
    result = init_from(student, teacher, by="name", verbose=0)
    assert_weights(result.get_layer("part1_up"), *teacher.get_layer("part1_up").get_weights())
    assert_weights(
        init_from(student, teacher, verbose=0).get_layer("part1_up"), *teacher.get_layer("part2_up").get_weights()
    )


def test_named_heads_go_by_name_in_whatever_order():
    def heads(names, name):
        inputs = keras.Input((5,))
        x = kl.Dense(4)(inputs)
        return randomised(keras.Model(inputs, {n: kl.Dense(2, name=n)(x) for n in names}, name=name))

    teacher = heads(["left", "right", "top"], "teacher")
    result = init_from(heads(["top", "left"], "student"), teacher, verbose=0)
    for name in ("top", "left"):
        assert_weights(result.get_layer(name), *teacher.get_layer(name).get_weights())
    assert len(result.init_report.layers) == 3


def test_slices_pass_concatenation_recurrent_gates_and_groups():
    def net(width, name):
        inputs = keras.Input((6, 4))
        x = kl.Concatenate(name="both")([kl.Conv1D(width, 1, name="a")(inputs), kl.Conv1D(width, 1, name="b")(inputs)])
        x = kl.LSTM(width, name="lstm")(kl.Conv1D(2 * width, 3, groups=2, name="grouped")(x))
        return randomised(keras.Model(inputs, kl.Dense(2, name="head")(x), name=name))

    teacher = net(4, "teacher")
    result = init_from(net(2, "student"), teacher, verbose=0)
    assert not result.init_report.kept
    kernel, recurrent, bias = teacher.get_layer("lstm").get_weights()
    gates = recurrent.reshape(4, 4, 4)
    units = best(
        sums(recurrent, 0)
        + sums(gates, 2)
        + sums(kernel.reshape(8, 4, 4), 2)
        + sums(teacher.layers[-1].kernel.numpy(), 0),
        2,
    )
    ours = result.get_layer("lstm").get_weights()
    np.testing.assert_array_equal(ours[1], gates[units][:, :, units].reshape(2, 8))
    np.testing.assert_array_equal(ours[2], bias.reshape(4, 4)[:, units].reshape(-1))
    a, b = (
        [np.flatnonzero(teacher.get_layer(name).bias.numpy() == value) for value in result.get_layer(name).bias.numpy()]
        for name in ("a", "b")
    )
    assert np.array_equal(a, b), "the groups of a convolution keep the same places"


def test_layers_that_do_not_fit_keep_their_own_with_the_reason():
    def net(kernel, second, width, name, bias=True):
        layers = [kl.Conv2D(4, kernel, name="first"), second, kl.Conv2D(width, 1, name="third", use_bias=bias)]
        tail = [kl.GlobalAveragePooling2D(), kl.Dense(3, name="head")]
        return randomised(keras.Sequential([keras.Input((8, 8, 2)), *layers, *tail], name=name))

    teacher = net(3, kl.Conv2D(4, 3, name="second"), 4, "teacher", bias=False)
    student = net(5, kl.SeparableConv2D(4, 3, name="second"), 4, "student")
    result = init_from(student, teacher, verbose=0)
    reasons = result.init_report.kept
    assert reasons["first"] == "of 'first': axis 0 of its kernel has size 5, the teacher's 3"
    assert reasons["second"] == "'second' of the teacher is a Conv2D"
    assert reasons["third"] == "'third' has no bias"
    assert [layer.how for layer in result.init_report.layers] == ["own init", "own init", "exact", "exact"]
    for name in ("first", "second"):
        assert_weights(result.get_layer(name), *student.get_layer(name).get_weights())
    np.testing.assert_array_equal(result.get_layer("third").bias, student.get_layer("third").bias)
    wider = init_from(net(3, kl.Conv2D(8, 3, name="second"), 4, "wider"), teacher, verbose=0)
    assert set(wider.init_report.kept) == {"second", "third"}


def test_masks_hold_on_what_is_taken():
    teacher = mlp(8, 8, 3, name="teacher")
    student = prune(mlp(4, 4, 3, name="student"), sparsity=0.5)
    result = init_from(student, teacher, verbose=0)
    free = init_from(mlp(4, 4, 3, name="student"), teacher, verbose=0)
    for ours, old, whole in zip(result.layers, student.layers, free.layers, strict=True):
        mask = old.kernel.numpy() != 0
        np.testing.assert_array_equal(ours.kernel, np.where(mask, whole.kernel, 0))
    zoo.fit(result, np.ones((8, MLP_INPUTS), "float32"))
    for ours, old in zip(result.layers, student.layers, strict=True):
        assert not ours.kernel.numpy()[old.kernel.numpy() == 0].any()


def test_users_constraints_hold():
    student = keras.Sequential([keras.Input((5,)), kl.Dense(4, kernel_constraint="non_neg"), kl.Dense(3)])
    teacher = mlp(8, 3, name="teacher")
    assert (teacher.layers[0].kernel.numpy() < 0).any()
    result = init_from(student, teacher, verbose=0)
    assert (result.layers[0].kernel.numpy() >= 0).all()
    assert np.isin(result.layers[0].kernel.numpy(), np.maximum(teacher.layers[0].kernel.numpy(), 0)).all()


def test_a_quantized_student_takes_kernels_and_keeps_its_form():
    teacher = residual_cnn(8, "teacher")
    plain = init_from(residual_cnn(4, "student"), teacher, verbose=0)
    result = init_from(quantize(residual_cnn(4, "student")), quantize(teacher), verbose=0)
    assert [type(layer) for layer in result.layers] == [type(layer) for layer in quantize(plain).layers]
    for name in ("stem", "wide", "narrow", "head"):
        assert_weights(result.get_layer(name).layer, *plain.get_layer(name).get_weights())


def test_a_clustered_student_finds_clusters_for_what_it_took():
    teacher = mlp(8, 3, name="teacher")
    result = init_from(cluster(mlp(8, 3, name="student"), n_clusters=4), teacher, verbose=0)
    assert_weights(result.layers[0], *teacher.layers[0].get_weights())
    result.compile(keras.optimizers.SGD(1e-6), "mse")
    result.fit(np.ones((4, MLP_INPUTS)), np.zeros((4, 3)), verbose=0)
    assert len(np.unique(result.layers[0].kernel)) <= 4
    assert abs(result.layers[0].kernel.numpy() - teacher.layers[0].kernel.numpy()).mean() < 0.2


def test_mixed_precision_and_adapted_normalization():
    def net(width, policy, name):
        layers = [kl.Normalization(dtype="float32", name="norm"), kl.Dense(width, dtype=policy), kl.Dense(2)]
        return keras.Sequential([keras.Input((5,)), *layers], name=name)

    teacher, student = net(8, "float32", "teacher"), net(4, "mixed_bfloat16", "student")
    x = np.random.default_rng(0).normal(3, 2, (64, 5)).astype("float32")
    teacher.get_layer("norm").adapt(x)
    result = init_from(student, teacher, verbose=0)
    assert result.layers[1].compute_dtype == "bfloat16"
    assert np.isin(result.layers[1].kernel.numpy(), teacher.layers[1].kernel.numpy()).all()
    np.testing.assert_allclose(result.layers[0](x), teacher.layers[0](x))


def test_trainable_flags_are_the_students():
    student = mlp(4, 3, name="student")
    student.layers[0].trainable = False
    assert not init_from(student, mlp(8, 3, name="teacher"), verbose=0).layers[0].trainable


def test_nothing_in_common_is_an_error():
    teacher = keras.Sequential([keras.Input((5, 3)), kl.LSTM(4)])
    with pytest.raises(NothingToDoError, match="no Dense of the teacher in its place"):
        init_from(mlp(4, 3), teacher)


def test_bad_models_are_refused():
    class Own(keras.Model):
        pass

    model = mlp(4, 3)
    for pair in ((Own(), model), (model, Own())):
        with pytest.raises(UnsupportedModelError):
            init_from(*pair)
    broken = mlp(4, 3)
    broken.layers[0].kernel.assign(np.full((5, 4), np.nan))
    with pytest.raises(NonFiniteError):
        init_from(model, broken)
    with pytest.raises(InvalidArgumentError, match="`by` must be one of 'auto', 'name', 'order'"):
        init_from(model, model, by="depth")


def test_the_report_says_what_was_taken(capsys, tmp_path):
    teacher, student = residual_stack(6, 4, "deep"), residual_stack(6, 2, "flat")
    report = init_from(student, teacher, verbose=2).init_report
    assert capsys.readouterr().out == f"{report}\n"
    init_from(student, teacher)
    assert capsys.readouterr().out == f"{report.summary}\n"
    assert report.summary.startswith("flat from deep: 423 of 423 parameters (100.0 %); 9 layers exact, 0 sliced")
    assert "3 of 4" in report._repr_html_()
    assert '"block": [\n        3,\n        4\n      ]' in report.to_json()
    assert report.save(tmp_path / "report.md").read_text().count("| 3 of 4 |") == 3


def test_flatten_of_another_grid_says_so():
    def net(size, width, name):
        layers = [kl.Conv2D(width, 3, name="conv"), kl.Flatten(), kl.Dense(2, name="head")]
        return randomised(keras.Sequential([keras.Input((size, size, 1)), *layers], name=name))

    result = init_from(net(5, 2, "student"), net(8, 4, "teacher"), verbose=0)
    assert taken(result)["conv"].how == "sliced"
    assert result.init_report.kept == {
        "head": "of 'head': a channel has another number of values in the teacher, as of another grid"
    }


def test_classes_are_not_picked_but_features_are():
    result = init_from(mlp(4, 2, name="student"), mlp(8, 3, name="teacher"), by="order", verbose=0)
    first, second = result.init_report.layers
    assert (first.how, second.how) == ("sliced", "own init")
    assert "it gives an output of the model, which is of another width in the teacher" in second.reason

    def backbone(width, name):
        inputs = keras.Input((6,))
        x = kl.Dense(width, name="stem")(inputs)
        return randomised(keras.Model(inputs, x + kl.Dense(width, name="branch")(x), name=name))

    teacher = backbone(4, "teacher")
    result = init_from(backbone(2, "student"), teacher, verbose=0)
    stem, branch = (teacher.get_layer(name).kernel.numpy() for name in ("stem", "branch"))
    kept = best(sums(stem, 1) + sums(branch, 0) + sums(branch, 1), 2)
    np.testing.assert_array_equal(result.get_layer("stem").kernel, stem[:, kept])
    np.testing.assert_array_equal(result.get_layer("branch").kernel, branch[np.ix_(kept, kept)])
