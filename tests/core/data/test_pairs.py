"""Which inputs and outputs of two models are one."""

import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.data.inputs import Input, inputs_of
from tfopt.core.data.pairs import as_read_by, paired, paired_outputs
from tfopt.core.errors import InvalidArgumentError


def inputs(**shapes):
    """Inputs of these names; one that begins with `no` has none."""
    return [
        Input(f"input_layer_{place}" if name.startswith("no") else name, (None, *shape), "float32")
        for place, (name, shape) in enumerate(shapes.items())
    ]


A, B = (4,), (7,)
PAIRS = {
    "one of another name": (inputs(a=A), inputs(b=A), [0]),
    "the same": (inputs(a=A, b=A), inputs(a=A, b=A), [0, 1]),
    "another order": (inputs(a=A, b=A, c=A), inputs(c=A, a=A, b=A), [2, 0, 1]),
    "by name before shape": (inputs(a=A, b=B), inputs(b=A, a=B), [1, 0]),
    "by shape": (inputs(a=A, b=B), inputs(x=B, y=A), [1, 0]),
    "one by name, others by shape": (inputs(a=A, b=B, c=(3,)), inputs(c=(3,), x=B, y=A), [2, 1, 0]),
    "a free size fits": (inputs(a=(None, 3), b=A), inputs(x=A, y=(5, 3)), [1, 0]),
    "no names": (inputs(no_0=A, no_1=A), inputs(no_5=A, no_7=A), [0, 1]),
    "no names but one": (inputs(a=A, no_1=A), inputs(no_4=A, a=A), [1, 0]),
    "no name on one side for the last": (inputs(a=A, b=A), inputs(no_4=A, b=A), [0, 1]),
    "no names, told by shape": (inputs(a=A, b=B), inputs(no_4=B, no_5=A), [1, 0]),
}


@pytest.mark.parametrize("case", PAIRS)
def test_paired(case):
    mine, theirs, want = PAIRS[case]
    assert paired(mine, theirs, "one", "two") == want


def test_kinds_of_numbers_tell_too():
    tokens, values = Input("a", (None, 4), "int32"), Input("b", (None, 4), "float32")
    x, y = Input("x", (None, 4), "float16"), Input("y", (None, 4), "int64")
    assert paired([tokens, values], [x, y], "one", "two") == [1, 0]


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (inputs(a=A, b=A), inputs(x=A, y=A)),
        (inputs(a=A, b=A), inputs(no_0=A, no_1=A)),
        (inputs(a=A, b=A), inputs(a=A, c=A)),
        (inputs(a=A, b=A, c=B), inputs(x=B, y=A, z=A)),
        (inputs(a=A), inputs(a=A, b=A)),
        (inputs(a=A, b=B), inputs(x=B, y=B)),
    ],
)
def test_nothing_tells(mine, theirs):
    with pytest.raises(InvalidArgumentError, match="of the same names, or of shapes that tell.*'one'.*'two'"):
        paired(mine, theirs, "one", "two")


def test_the_way_out_of_the_error():
    def net(*names):
        x = [keras.Input(A, name=name) for name in names]
        return keras.Model(x, kl.Concatenate()([kl.Rescaling(10.0)(x[0]), x[1]]), name="_".join(names))

    one, other = net("image", "meta"), net("data", "picture")
    with pytest.raises(InvalidArgumentError, match="named as those of 'image_meta', in the order of 'data_picture'"):
        paired(inputs_of(one), inputs_of(other), one.name, other.name)
    x = [keras.Input(A, name=name) for name in ("meta", "image")]
    renamed = keras.Model(x, other(x))
    assert paired(inputs_of(one), inputs_of(renamed), one.name, renamed.name) == [1, 0]
    image, meta = np.ones((2, 4)), np.zeros((2, 4))
    read = as_read_by(renamed, [image, meta], one)
    np.testing.assert_array_equal(renamed.predict(read, verbose=0), other.predict([meta, image], verbose=0))


def test_structures_of_both():
    def net(form, *names):
        x = {name: keras.Input((SIZES[name],), name=name) for name in names}
        return keras.Model(x if form is dict else list(x.values()), kl.Concatenate()(list(x.values())))

    SIZES = {"b": 1, "a": 2}
    read = as_read_by(net(list, "b", "a"), {"a": 2, "b": 1}, net(dict, "a", "b"))
    assert read == [1, 2]
    assert as_read_by(net(dict, "b", "a"), [1, 2], net(list, "b", "a")) == {"a": 2, "b": 1}


def outputs(*names, form=list, layer=kl.Dense):
    x = keras.Input((2,))
    y = {name: layer(1, name=name)(x) for name in names}
    return keras.Model(x, y if form is dict else list(y.values()))


@pytest.mark.parametrize(
    ("mine", "theirs", "want"),
    [
        (outputs("age", "height"), outputs("height", "age"), [1, 0]),
        (outputs("a", "b", "c"), outputs("c", "a", "b"), [2, 0, 1]),
        (outputs("a", "b", form=dict), outputs("b", "a"), [1, 0]),
        (outputs("b", "a", form=dict), outputs("a", "b", form=dict), [0, 1]),
        (outputs("dense_1", "dense"), outputs("dense", "dense_1"), [0, 1]),  # numbers, not names
        (outputs("a", "b"), outputs("x", "y"), [0, 1]),
    ],
)
def test_outputs(mine, theirs, want):
    assert paired_outputs(mine, theirs) == want
