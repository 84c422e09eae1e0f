import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.data.losses import inferred_loss
from tfopt.core.errors import InvalidArgumentError

SCORES = np.array([[0.2, -1.0, 3.0], [0.5, 0.5, 1.0]])
SHARES = np.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])
ONE = np.array([[0.2], [0.9]])


def model_with(last):
    return keras.Sequential([keras.Input((2,)), *last])


def described(loss):
    return type(loss).__name__.removesuffix("Crossentropy"), loss.get_config().get("from_logits")


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        (SCORES, [0, 2], ("SparseCategorical", True)),
        (SHARES, [0, 2], ("SparseCategorical", False)),
        (SHARES, [[0.0], [2.0]], ("SparseCategorical", False)),
        (SCORES, [[0, 0, 1], [1, 0, 0]], ("Categorical", True)),
        (SHARES, [[0, 0, 1], [1, 0, 0]], ("Categorical", False)),
        (SHARES, [[0, 1, 1], [1, 0, 0]], ("MeanSquaredError", None)),
        (SCORES, [[0.5, 1, 1], [1, 0, 0]], ("MeanSquaredError", None)),
        (SCORES[..., None] * [1, -1], np.zeros((2, 3)), ("SparseCategorical", True)),
        (ONE, [0.1, 0.2], ("MeanSquaredError", None)),
        (ONE, [[3], [4]], ("MeanSquaredError", None)),
        (ONE * 2, [[0], [1]], ("Binary", True)),
    ],
)
def test_loss_by_form(predictions, labels, expected):
    model = model_with([kl.Dense(predictions.shape[-1])])
    assert described(inferred_loss(model, predictions, np.array(labels))) == expected


@pytest.mark.parametrize(
    ("last", "from_logits"),
    [
        ([kl.Dense(1)], True),
        ([kl.Dense(1, "sigmoid")], False),
        ([kl.Dense(1), kl.Activation("sigmoid")], False),
        ([keras.Sequential([keras.Input((2,)), kl.Dense(1)])], True),
        ([keras.Sequential([keras.Input((2,)), kl.Dense(1, "sigmoid")])], False),
    ],
)
def test_binary_scores_in_the_unit_interval(last, from_logits):
    """They are logits all the same if a linear layer gives them."""
    loss = inferred_loss(model_with(last), ONE, np.array([0, 1]))
    assert described(loss) == ("Binary", from_logits)


def test_several_outputs():
    inputs = keras.Input((2,))
    parts = {"b": kl.Dense(3)(inputs), "a": kl.Dense(1)(inputs)}
    predictions, labels = {"b": SCORES, "a": ONE * 5}, {"a": np.array([0.5, 2.0]), "b": np.array([0, 2])}
    losses = inferred_loss(keras.Model(inputs, parts), predictions, labels)
    assert {name: described(loss) for name, loss in losses.items()} == {
        "a": ("MeanSquaredError", None),
        "b": ("SparseCategorical", True),
    }
    listed = keras.Model(inputs, [parts["b"], parts["a"]])
    losses = inferred_loss(listed, [SCORES, ONE], (labels["b"], labels["a"]))
    assert [described(loss)[0] for loss in losses] == ["SparseCategorical", "MeanSquaredError"]
    with pytest.raises(InvalidArgumentError, match=r"\['a'\] for outputs \['a', 'b'\]"):
        inferred_loss(keras.Model(inputs, parts), predictions, {"a": labels["a"]})
    with pytest.raises(InvalidArgumentError, match="1 arrays for 2 outputs"):
        inferred_loss(listed, [SCORES, ONE], labels["a"])


@pytest.mark.parametrize("labels", [np.zeros((2, 2)), np.array([0.5, 1.0]), np.zeros((3, 3))])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(InvalidArgumentError, match=r"labels \(.*predictions \(2, 3\).*pass `loss=`"):
        inferred_loss(model_with([kl.Dense(3)]), SCORES, labels)
