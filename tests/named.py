"""Models of inputs that are told by name, and the forms in which `fit` takes data for them."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers as kl

SIZES = {"image": 4, "meta": 4, "age": 1}  # the first two can be told by name alone
SAMPLES = 24


def net(names, width=3, title=None, activation="softmax", form=list):
    """Reads each input at a scale of its own, so that inputs that are mixed up show; `form` is list or dict."""
    inputs = {name: keras.Input((SIZES[name],), name=name) for name in names}
    scaled = [kl.Rescaling(1.0 + 9 * place)(inputs[name]) for place, name in enumerate(SIZES) if name in inputs]
    joined = kl.Concatenate()(scaled) if len(scaled) > 1 else scaled[0]
    outputs = kl.Dense(3, activation, name="out")(kl.Dense(width, "tanh", name="hidden")(joined))
    return keras.Model(inputs if form is dict else [inputs[name] for name in names], outputs, name=title)


def arrays(names, samples=SAMPLES):
    """Inputs by name."""
    rng = np.random.default_rng(0)
    return {name: rng.random((samples, SIZES[name])).astype("float32") for name in names}


def labels(samples=SAMPLES):
    return np.arange(samples) % 3


class Batches(keras.utils.PyDataset):
    def __init__(self, parts, size=8):
        super().__init__()
        self.parts, self.size = parts, size

    def __len__(self):
        return -(-len(keras.tree.flatten(self.parts)[0]) // self.size)

    def __getitem__(self, i):
        return keras.tree.map_structure(lambda array: array[self.size * i : self.size * (i + 1)], self.parts)


def parts_of(names, form, weights=False):
    """`(x, y)` or `(x, y, weights)` with x as `form` has it: "tuple", "list", "dict" or "more", a dict with more."""
    x = arrays(names)
    given = {
        "tuple": tuple(x.values()),
        "list": list(x.values()),
        "dict": dict(reversed(x.items())),
        "more": {"more": np.zeros((SAMPLES, 7)), **x},
    }[form]
    given = given[0] if len(names) == 1 and form in ("tuple", "list") else given
    return (given, labels(), np.linspace(0.5, 1.5, SAMPLES)) if weights else (given, labels())


WRAPPED = {
    "arrays": lambda parts: parts,
    "dataset": lambda parts: tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(parts)).batch(8),
    "pydataset": Batches,
    "generator": lambda parts: (Batches(parts)[i] for i in range(3)),
}
