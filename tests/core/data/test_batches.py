import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from keras import layers as kl

from tfopt.core.data.batches import as_inputs, input_batches, labelled_batches, paired_batches, whole_batch
from tfopt.core.errors import InvalidArgumentError, NonFiniteError

X = np.arange(70, dtype="float32").reshape(35, 2)
Y = np.arange(35)


def one_input():
    return keras.Sequential([keras.Input((2,), name="x"), kl.Dense(1)])


class Batches(keras.utils.PyDataset):
    num_batches = 3

    def __getitem__(self, i):
        return X[16 * i : 16 * i + 16], Y[16 * i : 16 * i + 16]


FORMS = {
    "tuple": lambda: (X, Y),
    "list": lambda: [X, Y],
    "lists": lambda: (X.tolist(), Y.tolist()),
    "dict": lambda: ({"x": X}, Y),
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(16),
    "generator": lambda: ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)),
    "pydataset": Batches,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("limit", [None, 20, 32])
def test_labels_go_with_their_samples(form, limit):
    batches = list(labelled_batches(one_input(), FORMS[form](), batch_size=16, limit=limit))
    assert [len(y) for _, y, _ in batches] == {None: [16, 16, 3], 20: [16, 4], 32: [16, 16]}[limit]
    np.testing.assert_array_equal(np.concatenate([x for (x,), _, _ in batches]), X[:limit])
    np.testing.assert_array_equal(np.concatenate([y for _, y, _ in batches]), Y[:limit])
    assert all(weights is None for _, _, weights in batches)
    if form not in ("list", "lists"):
        inputs = list(input_batches(one_input(), FORMS[form](), batch_size=16, limit=limit))
        np.testing.assert_array_equal(np.concatenate([x for (x,) in inputs]), X[:limit])


def test_structures_and_sample_weights():
    model = zoo.build("shared")
    x = zoo.inputs_for(model, 5)
    targets = {"a": np.zeros((5, 2)), "b": np.ones((5, 3))}
    (first, second) = labelled_batches(model, (x, targets, np.arange(5)), batch_size=3)
    np.testing.assert_array_equal(first[0][1], x["right"][:3])
    assert {name: y.shape for name, y in second[1].items()} == {"a": (2, 2), "b": (2, 3)}
    assert second[2].tolist() == [3, 4]
    packed = as_inputs(model, first[0])
    assert list(packed) == ["left", "right"]
    np.testing.assert_array_equal(packed["right"], x["right"][:3])


def test_inputs_become_tensors_of_the_dtype_of_the_model():
    model = keras.Sequential([keras.Input((2,), dtype="int32"), kl.Embedding(4, 2)])
    assert as_inputs(model, [np.array([[1.0, 2.0]])]).dtype == tf.int32


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (X, InvalidArgumentError, "samples and their labels.*ndarray"),
        ((X,), InvalidArgumentError, "tuple of 1"),
        ((X, None), InvalidArgumentError, "samples and their labels"),
        (iter([X]), InvalidArgumentError, "samples and their labels"),
        ((X, Y[:32]), InvalidArgumentError, "35, 32"),
        ((X[:32], Y), InvalidArgumentError, "32, 35"),
        ((X, Y, Y[:3]), InvalidArgumentError, "35, 35, 3"),
        ((X, 1.0), InvalidArgumentError, "samples along the first axis"),
        ((X, np.full(35, "cat")), InvalidArgumentError, "labels have to be numbers"),
        ((X, np.full(35, np.inf)), NonFiniteError, "labels have to be finite"),
        ((X, Y, np.full(35, np.nan)), NonFiniteError, "finite"),
        ((X * np.nan, Y), NonFiniteError, "data has to be finite"),
        ((X[:, :1], Y), InvalidArgumentError, "shape of the model's input"),
        ((X[:0], Y[:0]), InvalidArgumentError, "at least one sample"),
        (iter([]), InvalidArgumentError, "at least one sample"),
    ],
)
def test_errors(data, error, message):
    with pytest.raises(error, match=message):
        list(labelled_batches(one_input(), data))


def test_inputs_of_different_length():
    x = zoo.inputs_for(zoo.build("shared"), 40)
    with pytest.raises(InvalidArgumentError, match="32, 40"):
        list(input_batches(zoo.build("shared"), {"left": x["left"][:32], "right": x["right"]}))


WEIGHTS = np.linspace(0, 1, 35)
PAIRED = {
    "x": (X, None, None),
    "tuple of x": ((X,), None, None),
    "x, y": ((X, Y), Y, None),
    "x, None": ((X, None), None, None),
    "x, y, weights": ((X, Y, WEIGHTS), Y, WEIGHTS),
    "x in a list": (([X], Y), Y, None),
    "x in a dict": (({"x": X}, {"a": Y}), {"a": Y}, None),
}


@pytest.mark.parametrize("case", PAIRED)
@pytest.mark.parametrize("form", ["arrays", "batches"])
def test_labels_may_be_missing(case, form):
    data, targets, weights = PAIRED[case]
    (batch,) = paired_batches(one_input(), data if form == "arrays" else iter([data]), batch_size=40)
    np.testing.assert_array_equal(batch.inputs[0], X)
    keras.tree.map_structure(np.testing.assert_array_equal, batch.given, {"x": X} if "dict" in case else X)
    keras.tree.map_structure(np.testing.assert_array_equal, batch.targets, targets)
    np.testing.assert_array_equal(batch.weights, weights)


@pytest.mark.parametrize("labels", [False, True], ids=["x", "x, y"])
@pytest.mark.parametrize("form", [dict, tuple, list])
def test_two_inputs_are_told_from_an_input_and_its_labels(form, labels):
    model = zoo.build("shared")
    x = {name: array[:5] for name, array in zoo.inputs_for(model).items()}
    given = x if form is dict else form(x.values())
    batches = list(paired_batches(model, (given, np.arange(5)) if labels else given, batch_size=3))
    assert [len(batch.inputs[0]) for batch in batches] == [3, 2]
    np.testing.assert_array_equal(batches[1].inputs[1], x["right"][3:])
    right = batches[1].given["right"] if form is dict else batches[1].given[1]
    np.testing.assert_array_equal(right, x["right"][3:])
    assert (None if batches[1].targets is None else batches[1].targets.tolist()) == ([3, 4] if labels else None)


def test_whole_arrays_are_not_copied_and_data_sets_are_not_whole():
    whole = whole_batch(one_input(), (X, Y))
    assert whole.inputs[0] is X
    assert whole.given is X
    assert whole.targets is Y
    assert whole_batch(one_input(), FORMS["dataset"]()) is None
    assert whole_batch(one_input(), FORMS["generator"]()) is None
    (batch,) = paired_batches(one_input(), (X, Y), batch_size=40)
    assert np.shares_memory(batch.given, X)


def test_weights_without_labels():
    with pytest.raises(InvalidArgumentError, match="Sample weights come with labels"):
        whole_batch(one_input(), (X, None, WEIGHTS))
