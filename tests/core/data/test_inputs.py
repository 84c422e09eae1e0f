"""Data in each form that `fit` takes, read for models of one, two and three inputs."""

import keras
import named
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.data.batches import input_batches, labelled_batches, paired_batches
from tfopt.core.data.inputs import arrays_in, inputs_of, is_numbered
from tfopt.core.data.samples import labelled
from tfopt.core.errors import InvalidArgumentError

NAMES = [("image",), ("meta", "image"), ("meta", "age", "image")]
FORMS = ["tuple", "list", "dict", "more"]


def columns(batches):
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("names", NAMES, ids=len)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapped", named.WRAPPED)
@pytest.mark.parametrize("weights", [False, True], ids=["x, y", "x, y, w"])
def test_forms_of_fit(names, form, wrapped, weights):
    model, want = named.net(names), list(named.arrays(names).values())

    def data():
        return named.WRAPPED[wrapped](named.parts_of(names, form, weights))

    for found, own in zip(columns(input_batches(model, data(), batch_size=8)), want, strict=True):
        np.testing.assert_array_equal(found, own)
    x, y, w = zip(*labelled_batches(model, data(), batch_size=8), strict=True)
    assert [part.tolist() for part in columns(x)] == [part.tolist() for part in want]
    assert np.concatenate(y).tolist() == named.labels().tolist()
    assert (w == (None,) * 3) if not weights else np.allclose(np.concatenate(w), np.linspace(0.5, 1.5, 24))
    batches = list(paired_batches(model, data(), batch_size=8))
    assert [part.tolist() for part in columns(batch.inputs for batch in batches)] == [part.tolist() for part in want]
    samples = labelled(model, data())
    assert [part.tolist() for part in keras.tree.flatten(samples.x)] == [part.tolist() for part in want]
    assert (samples.weights is None) is not weights


@pytest.mark.parametrize("names", NAMES, ids=len)
@pytest.mark.parametrize("form", FORMS)
def test_inputs_without_labels(names, form):
    x = named.parts_of(names, form)[0]
    for data in (x, (x,), iter([x]), iter([(x,)])):
        found = columns(input_batches(named.net(names), data))
        assert [part.tolist() for part in found] == [part.tolist() for part in named.arrays(names).values()]


def test_a_table_of_pandas():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(named.arrays(["image"])["image"], columns=list("abcd"))
    one = named.net(["image"])
    for data in (frame, (frame, pd.Series(named.labels())), iter([(frame, pd.Series(named.labels()))])):
        np.testing.assert_array_equal(columns(input_batches(one, data))[0], frame.to_numpy())
    inputs = {name: keras.Input((1,), name=name) for name in "dcba"}
    by_column = keras.Model(list(inputs.values()), kl.Concatenate()(list(inputs.values())))
    samples = labelled(by_column, (dict(frame), pd.Series(named.labels())))
    np.testing.assert_array_equal(np.concatenate(samples.x, 1), frame[list("dcba")].to_numpy())
    want = by_column.predict({name: frame[name].to_numpy() for name in frame}, verbose=0)
    np.testing.assert_array_equal(by_column.predict(samples.x, verbose=0), want)


def test_an_iterable_that_is_no_iterator():
    class Loader:
        def __iter__(self):
            return iter([(named.arrays(["image"])["image"], named.labels())] * 2)

    assert [len(x) for (x,) in input_batches(named.net(["image"]), Loader())] == [24, 24]
    assert len(labelled(named.net(["image"]), Loader())) == 48


def test_batches_of_a_list_are_read_as_fit_reads_them():
    x, y = named.arrays(["image"])["image"], named.labels()
    (batch,) = input_batches(named.net(["image"]), iter([[x, y]]))
    np.testing.assert_array_equal(batch[0], x)


@pytest.mark.filterwarnings("ignore:When providing")
def test_lists_within_dicts():
    a, b, c = (keras.Input((2,), name=name) for name in "abc")
    model = keras.Model({"left": [a, b], "right": c}, kl.Concatenate()([a, b, c]))
    x = [np.full((5, 2), value) for value in range(3)]
    nested = {"left": x[:2], "right": x[2]}
    for data in (nested, (nested, np.arange(5)), dict(zip("abc", x, strict=True)), tuple(x), (tuple(x), np.arange(5))):
        assert [part[0, 0] for part in columns(input_batches(model, data))] == [0, 1, 2]


def test_a_key_of_the_model_goes_before_the_name_of_a_layer():
    with pytest.warns(UserWarning, match="keys in the dict must match"):
        model = keras.Model(x := {"a": keras.Input((2,)), "b": keras.Input((2,))}, kl.Add()([x["a"], x["b"]]))
    assert [own.name for own in inputs_of(model)] == ["a", "b"]
    assert arrays_in({"b": 1, "a": 0}, inputs_of(model)) == [0, 1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"image": np.zeros((3, 4))}, "key for each input.*'image'.*The inputs are meta, image"),
        ([np.zeros((3, 4))], "2 input"),
        (np.zeros((3, 4)), "2 input"),
        (([np.zeros((3, 4))] * 3, np.zeros(3)), "2 input"),
        ((np.zeros((3, 4)), np.zeros((3, 5))), "shape of the model's input.*'image'"),
    ],
)
def test_what_is_missing(data, message):
    with pytest.raises(InvalidArgumentError, match=message):
        list(input_batches(named.net(["meta", "image"]), data))


@pytest.mark.parametrize("name", ["input", "input_2", "input_layer", "input_layer_12", "keras_tensor_3CLONE"])
def test_names_that_are_numbers(name):
    assert is_numbered(name)
    assert not is_numbered(f"my_{name}")
