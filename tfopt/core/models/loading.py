"""The verb `load_model`: saved Keras models, old ones too, with errors that say what to do."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras

from tfopt.core.errors import FileError

_ANY = object()
_SHORT_NAMES = ("mse", "mae", "mape", "msle")  # of losses, which Keras writes into .h5 files and does not read again

# Keys that Keras 2 wrote into a layer's config and Keras 3 rejects -> the only value that Keras 3 knows; `_ANY` where
# the key says nothing about what the layer computes.
_GROUPS: dict[str, Any] = {"groups": 1}
_TIME_MAJOR: dict[str, Any] = {"time_major": False}
_SEPARABLE: dict[str, Any] = {
    **_GROUPS,
    "kernel_initializer": _ANY,
    "kernel_regularizer": None,
    "kernel_constraint": None,
}
_SPATIAL_DROPOUT: dict[str, Any] = {"noise_shape": None, "trainable": _ANY}
_KERAS_2_KEYS: dict[str, dict[str, Any]] = {
    "Conv1DTranspose": _GROUPS,
    "Conv2DTranspose": _GROUPS,
    "Conv3DTranspose": _GROUPS,
    "DepthwiseConv1D": _GROUPS,
    "DepthwiseConv2D": _GROUPS,
    "SeparableConv1D": _SEPARABLE,
    "SeparableConv2D": _SEPARABLE,
    "ConvLSTM1D": _TIME_MAJOR,
    "ConvLSTM2D": _TIME_MAJOR,
    "ConvLSTM3D": _TIME_MAJOR,
    "GRU": _TIME_MAJOR,
    "LSTM": _TIME_MAJOR,
    "RNN": _TIME_MAJOR,
    "SimpleRNN": _TIME_MAJOR,
    "SpatialDropout1D": _SPATIAL_DROPOUT,
    "SpatialDropout2D": _SPATIAL_DROPOUT,
    "SpatialDropout3D": _SPATIAL_DROPOUT,
}


def load_model(
    path: str | os.PathLike, custom_objects: dict[str, Any] | None = None, *, compile: bool = False
) -> keras.Model:
    """Loads a `.keras` or `.h5` file; `.h5` files written by Keras 2 too. The file is never changed.

    Safe mode stays on: a file that brings Python code of its own (a `Lambda` layer) is refused.

    Args:
        path: a file that ends in `.keras`, `.h5` or `.hdf5`.
        custom_objects: names to classes or functions of your own that the file mentions.
        compile: with the optimizer, loss and metrics that the file holds, if any.

    Returns:
        The model, without optimizer, loss and metrics unless asked for.

    Raises:
        FileError: the file is missing, damaged, of another kind, or needs something that is not there.

    Example:
        >>> import tempfile
        >>> file = os.path.join(tempfile.mkdtemp(), "model.keras")
        >>> keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(file)
        >>> load_model(file).output_shape
        (None, 2)
    """
    file = Path(path)
    _check_kind(file)
    try:
        if file.suffix == ".keras":
            return keras.saving.load_model(file, custom_objects=custom_objects, compile=compile)
        return _load_h5(file, custom_objects, compile)
    except FileError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, OSError, zipfile.BadZipFile) as error:
        raise _explained(file, error) from error


def _check_kind(file: Path) -> None:
    """Raises unless the path names a file that looks like a saved Keras model."""
    received = f"'{file}'"
    if file.is_dir():
        if (file / "saved_model.pb").exists():
            raise FileError(
                "A SavedModel holds a computation, not the layers that tfopt works on.",
                received=received,
                fix="Save the original model again with `model.save('model.keras')`; for inference alone there is "
                "`keras.layers.TFSMLayer`.",
            )
        raise FileError("The path has to name a file.", received=f"the folder {received}")
    if not file.exists():
        raise FileError("The model file has to exist.", received=received)
    if file.suffix == ".tflite":
        raise FileError(
            "A .tflite file holds no Keras layers.", received=received, fix="Run it with `tfopt.TFLiteModel(path)`."
        )
    if file.suffix not in (".keras", ".h5", ".hdf5"):
        raise FileError(
            "A model is read from a .keras, .h5 or .hdf5 file.",
            received=received,
            fix="Save it with `model.save('model.keras')`, or rename the file if it is one of these.",
        )
    is_whole = zipfile.is_zipfile(file) if file.suffix == ".keras" else h5py.is_hdf5(file)
    if not is_whole:
        kind = "zip" if file.suffix == ".keras" else "HDF5"
        raise FileError(
            f"A {file.suffix} file is a {kind} archive.",
            received=f"{received}, {file.stat().st_size} bytes that are none",
            fix="The file is cut off or of another kind: copy or download it again.",
        )


def _load_h5(file: Path, custom_objects: dict[str, Any] | None, compile: bool) -> keras.Model:
    """Loads the file, or a copy of it whose config Keras 3 accepts."""
    if compile:
        custom_objects = {**{name: keras.losses.get(name) for name in _SHORT_NAMES}, **(custom_objects or {})}
    with h5py.File(file, "r") as stored:
        text = stored.attrs.get("model_config")
    if text is None:
        raise FileError(
            "The file has to hold a model, not its weights alone.",
            received=f"'{file}' without 'model_config'",
            fix="Build the model in code and call `model.load_weights(path)`.",
        )
    config = json.loads(text)
    if not _drop_keras_2_keys(config, file):
        return keras.saving.load_model(file, custom_objects=custom_objects, compile=compile)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(file, Path(folder) / "model.h5"))
        with h5py.File(copy, "r+") as stored:
            stored.attrs["model_config"] = json.dumps(config)
        return keras.saving.load_model(copy, custom_objects=custom_objects, compile=compile)


def _drop_keras_2_keys(config: Any, file: Path) -> int:
    """Drops the keys that Keras 3 rejects from a nested config, in place; says how many."""
    if isinstance(config, list):
        return sum(_drop_keras_2_keys(item, file) for item in config)
    if not isinstance(config, dict):
        return 0
    dropped = sum(_drop_keras_2_keys(value, file) for value in config.values())
    layer = config.get("config")
    if not isinstance(layer, dict):
        return dropped
    known = _KERAS_2_KEYS.get(config.get("class_name", ""), {})
    for key in [key for key in known if key in layer]:
        value = layer.pop(key)
        dropped += 1
        if known[key] is not _ANY and value != known[key]:
            raise FileError(
                f"Keras 3 has no `{key}` for {config['class_name']}; only {known[key]!r} can be read.",
                received=f"{key}={value!r} in layer '{layer.get('name')}' of '{file}'",
                fix="Load the model with tf_keras, build it without that option and save it again.",
            )
    return dropped


def _explained(file: Path, error: Exception) -> FileError:
    """The error of Keras as one that says what to do."""
    text = str(error).strip()
    if "safe_mode" in text or "`Lambda`" in text:
        return FileError(
            "Models with Python code of their own (`Lambda` layers) are not loaded, as such a file can run anything.",
            received=f"'{file}'",
            fix="If you trust it, call `keras.saving.load_model(path, safe_mode=False)` yourself; better replace the "
            "`Lambda` by a `keras.ops` call or a registered layer and save again.",
        )
    if "TFOpLambda" in text or "SlicingOpLambda" in text:
        return FileError(
            "TensorFlow operations between the layers of a Keras 2 model cannot be read by Keras 3.",
            received=f"'{file}'",
            fix="Replace them by layers (`Add`, `Rescaling`, ...) in the code that builds the model and save again.",
        )
    if "Unknown layer" in text or "could not be deserialized" in text or "Could not locate" in text:
        return FileError(
            "The file mentions a layer or function that Keras does not know.",
            received=f"'{file}': {_short(text)}",
            fix="Pass it in `custom_objects`, or register it with `@keras.saving.register_keras_serializable()`.",
        )
    return FileError(
        "The file has to hold a whole Keras model.",
        received=f"'{file}': {type(error).__name__}: {_short(text)}",
        fix="It is damaged, or another version of Keras wrote what this one cannot read: save it again from code.",
    )


def _short(text: str) -> str:
    first = text.splitlines()[0] if text else ""
    return first if len(first) <= 200 else first[:197] + "..."
