"""Which search goes on in a directory: the same code, the same model, the same data."""

import functools
import subprocess
import sys
import types
from pathlib import Path

import keras
import keras_tuner
import numpy as np
import pytest
import tensorflow as tf

from tfopt.core.errors import InvalidArgumentError
from tfopt.tuner.arguments import as_hypermodel, fingerprints
from tfopt.tuner.code import code_fingerprint
from tfopt.tuner.space import SearchSpace
from tfopt.tuner.tune import search

ROOT = Path(__file__).resolve().parents[2]
X, Y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])

SOURCE = '''
import functools

class Tuned(HyperModel):
    units = 8
    def __init__(self, factor=1):
        super().__init__()
        self.factor = factor
    def build(self, hp):
        return helper(hp, self.units * self.factor)

class Called:
    def __init__(self, units):
        self.units = units
    def __call__(self, hp):
        return helper(hp, self.units)
    def method(self, hp):
        return helper(hp, self.units)

def helper(hp, units):
    return [part for part in range(units) if part not in {"a", "b", "c"}] if hp else recursive(units)

def recursive(units):
    return recursive(units - 1)

def plain(hp, units=8):
    """Builds."""
    return helper(hp, units)

def made(units):
    return lambda hp: helper(hp, units)

BUILDERS = {
    "plain": plain,
    "closure": made(8),
    "partial": functools.partial(plain, units=8),
    "object": Called(8),
    "method": Called(8).method,
    "class": Tuned(),
}
'''


def builders(source=SOURCE):
    """A hash for each builder of a module with that source."""
    module = types.ModuleType("written")
    module.HyperModel = keras_tuner.HyperModel
    exec(compile(source, "written.py", "exec"), vars(module))
    return {
        name: fingerprints(as_hypermodel(builder, None, True), X, X)["space"]
        for name, builder in module.BUILDERS.items()
    }


def test_the_same_code_is_the_same_wherever_it_stands():
    before = builders()
    assert builders(f"# a comment\n\n{SOURCE}") == before
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_fingerprints
print(test_fingerprints.builders())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().splitlines()[-1] == repr(before)


@pytest.mark.parametrize(
    ("old", "new", "others"),
    [
        ("range(units)", "range(units + 1)", {"plain", "closure", "partial", "object", "method", "class"}),
        ("units - 1", "units - 2", {"plain", "closure", "partial", "object", "method", "class"}),
        ('{"a", "b", "c"}', '{"a", "b", "d"}', {"plain", "closure", "partial", "object", "method", "class"}),
        ("units=8)", "units=9)", {"plain", "partial"}),
        ("made(8)", "made(9)", {"closure"}),
        ("Called(8),", "Called(9),", {"object"}),
        ("Called(8).", "Called(9).", {"method"}),
        ("Tuned()", "Tuned(2)", {"class"}),
        ("units = 8", "units = 9", {"class"}),
    ],
)
def test_other_code_is_another(old, new, others):
    before, after = builders(), builders(SOURCE.replace(old, new))
    assert {name for name in before if before[name] != after[name]} == others


def test_a_changed_builder_is_refused(tmp_path):
    def builder(units):
        def build(hp):
            hp.Choice("lr", [0.1, 0.2])
            return compiled(units)

        return build

    options = {"train": (X, Y), "val": (X, Y), "budget": 1, "epochs": 1, "directory": tmp_path, "verbose": 0}
    first = search(builder(2), **options)
    assert search(builder(2), **options).trials == first.trials
    with pytest.raises(InvalidArgumentError, match="differs in space"):
        search(builder(3), **options)


def compiled(units=2):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"], run_eagerly=True)
    return model


def test_spaces_are_told_apart_by_architecture_and_code():
    def space(units=2, cls=SearchSpace, **options):
        model = compiled(units)
        model.compile(**{"optimizer": "adam", "loss": "mse", **options})
        return fingerprints(cls.from_model(model, lr=(0.1, 0.2), inherit=False), X, X)["space"]

    def scaled(factor):
        return lambda y_true, y_pred: factor * keras.losses.mean_squared_error(y_true, y_pred)

    class Other(SearchSpace):
        def fit(self, *arguments, **options):
            return super().fit(*arguments, **options)

    assert space() == space()  # new weights and new names
    assert space(loss=scaled(2)) == space(loss=scaled(2))
    others = [{"units": 3}, {"cls": Other}, {"optimizer": keras.optimizers.Adam(0.5)}, {"loss": "mae"}]
    others += [{"loss": scaled(2)}, {"loss": scaled(3)}, {"loss": keras.losses.Huber(0.5)}]
    assert len({space(), *(space(**other) for other in others)}) == 8


def of_data(data):
    return fingerprints(keras_tuner.HyperModel(), data, None)["data"]


def test_arrays_of_all_kinds_are_told_apart_by_content():
    for made in (np.array, tf.constant, lambda rows: {"a": np.array(rows)}):
        one, same, other = (of_data((made(rows), Y)) for rows in ([[1.0]], [[1.0]], [[2.0]]))
        assert one == same != other


class Batches(keras.utils.PyDataset):
    def __init__(self, value, batches):
        super().__init__()
        self.value, self.batches = value, batches

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        return np.full((2, 1), self.value), np.zeros(2)


def test_datasets_are_told_apart_by_what_can_be_known():
    def dataset(rows, dtype="float32", batch=2):
        return tf.data.Dataset.from_tensor_slices(np.array(rows, dtype)).batch(batch)

    same = [of_data(dataset(range(6))) for _ in range(2)]
    assert same[0] == same[1]
    others = [dataset(range(1, 7)), dataset(range(8)), dataset(range(6), "int32"), dataset(range(6), batch=3)]
    assert len({same[0], *map(of_data, others)}) == 5

    shuffled = [of_data(dataset(range(100)).shuffle(50)) for _ in range(2)]
    assert shuffled[0] == shuffled[1]  # the first batch is another each time
    fixed = [of_data(dataset(range(100)).shuffle(50, seed=seed, reshuffle_each_iteration=False)) for seed in (1, 1, 2)]
    assert fixed[0] == fixed[1] != fixed[2]
    assert len({of_data(Batches(1, 3)), of_data(Batches(1, 3)), of_data(Batches(2, 3)), of_data(Batches(1, 4))}) == 3


def test_a_model_bound_to_a_builder_counts_with_its_weights():
    model = compiled()
    before = code_fingerprint(functools.partial(print, model))
    model.layers[0].bias.assign_add([0.0, 1.0])
    assert code_fingerprint(functools.partial(print, model)) != before
