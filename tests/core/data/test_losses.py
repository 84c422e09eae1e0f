import keras
import numpy as np
import pytest
from keras import layers as kl

from tfopt.core.data.losses import inferred_loss
from tfopt.core.errors import InvalidArgumentError

SCORES = np.array([[0.2, -1.0, 3.0], [0.5, 0.5, 1.0]])
SHARES = np.array([[0.25, 0.25, 0.5], [1.0, 0.0, 0.0]])
ONE = np.array([[0.2], [0.9]])
ONE_HOT = [[0, 0, 1], [1, 0, 0]]


def shares(values):
    """An activation of the user's own."""
    return values


def model_with(last):
    return keras.Sequential([keras.Input((2,)), *last])


def described(loss):
    return type(loss).__name__.removesuffix("Crossentropy"), loss.get_config().get("from_logits")


@pytest.mark.parametrize(
    ("last", "predictions", "labels", "expected"),
    [
        (None, SCORES, [0, 2], ("SparseCategorical", True)),
        (None, SHARES, [0, 2], ("SparseCategorical", True)),  # a linear layer gives logits, whatever their sum
        ("softmax", SHARES, [0, 2], ("SparseCategorical", False)),
        ("softmax", SHARES, [[0.0], [2.0]], ("SparseCategorical", False)),
        ("log_softmax", SCORES, [0, 2], ("SparseCategorical", True)),
        ("sigmoid", SHARES, [0, 2], ("SparseCategorical", False)),
        (shares, SHARES, [0, 2], ("SparseCategorical", False)),  # by the predictions
        (shares, SCORES, [0, 2], ("SparseCategorical", True)),
        (None, SCORES, ONE_HOT, ("Categorical", True)),
        ("softmax", SHARES, ONE_HOT, ("Categorical", False)),
        ("log_softmax", SCORES, ONE_HOT, ("Categorical", True)),
        ("sigmoid", SHARES, ONE_HOT, ("Binary", False)),
        ("sigmoid", SHARES, [[0, 1, 1], [1, 0, 0]], ("Binary", False)),
        (None, SHARES, [[0, 1, 1], [1, 0, 0]], ("MeanSquaredError", None)),
        (None, SCORES, [[0.5, 1, 1], [1, 0, 0]], ("MeanSquaredError", None)),
        (None, SCORES[..., None] * [1, -1], np.zeros((2, 3)), ("SparseCategorical", True)),
        (None, ONE, [0.1, 0.2], ("MeanSquaredError", None)),
        (None, ONE, [[3], [4]], ("MeanSquaredError", None)),
        (None, ONE * 2, [[0], [1]], ("Binary", True)),
    ],
)
def test_loss_by_form(last, predictions, labels, expected):
    model = model_with([kl.Dense(predictions.shape[-1], last)])
    assert described(inferred_loss(model, predictions, np.array(labels))) == expected


@pytest.mark.parametrize(
    ("last", "from_logits"),
    [
        ([kl.Dense(1)], True),
        ([kl.Dense(1, "sigmoid")], False),
        ([kl.Dense(1, shares)], False),
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


def test_the_loss_of_log_probabilities_is_that_of_the_probabilities():
    logits = np.random.default_rng(0).normal(0, 3, (6, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    labels = np.arange(6) % 3
    loss = inferred_loss(model_with([kl.Dense(3, "log_softmax")]), np.log(probabilities), labels)
    want = -np.log(probabilities[np.arange(6), labels]).mean()
    np.testing.assert_allclose(loss(labels, np.log(probabilities).astype("float32")), want, rtol=1e-5)
    with pytest.raises(InvalidArgumentError, match=r"labels for log-probabilities must.*from_logits=True"):
        inferred_loss(model_with([kl.Dense(3, "log_softmax")]), np.log(probabilities), probabilities)
