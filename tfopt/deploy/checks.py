"""What has to hold before anything is converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from tfopt.core.checks import Range, as_choice, as_count, as_number
from tfopt.core.errors import FileError, InvalidArgumentError, UnsupportedModelError
from tfopt.core.models.graph import Graph
from tfopt.core.models.preprocessing import reads_raw
from tfopt.deploy.convert import IO_TYPES

QUANTIZATIONS = ("auto", "none", "dynamic", "float16", "int8", "int16x8", "weight_only")
_SPARSE: tuple[bool | str, ...] = ("auto", True, False)
OF_KERAS = (".keras", ".h5", ".hdf5")  # suffixes of the files that a model is trained and kept in


@dataclass(frozen=True)
class Options:
    """The arguments of `export_tflite` that hold for each model of a file."""

    quantization: str
    io_types: tuple[str, str]
    batch_size: int | None
    sparse: bool | str
    tolerance: float | None

    @classmethod
    def of(cls, quantization: Any, io_types: tuple[Any, Any], batch_size: Any, sparse: Any, tolerance: Any) -> Options:
        """The options as Python's own values; raises for an unknown one, or one out of range."""
        bound = Range(above=0, infinite=True)
        return cls(
            as_choice("quantization", quantization, QUANTIZATIONS),
            (as_choice("input_type", io_types[0], IO_TYPES), as_choice("output_type", io_types[1], IO_TYPES)),
            None if batch_size is None else as_count("batch_size", batch_size),
            as_choice("sparse", sparse, _SPARSE),
            None if tolerance is None else as_number("tolerance", tolerance, bound, what="a fraction above 0"),
        )


def check_name(path: Path) -> None:
    """Raises for the name of a Keras file: the trained model would be gone."""
    if path.suffix.lower() in OF_KERAS:
        raise FileError(
            "The file to write must end in .tflite.", received=f"'{path}'", fix=f"Pass '{path.with_suffix('.tflite')}'."
        )


def check_comparison(compare_with: Any, min_sqnr_db: Any, signatures: list[str]) -> None:
    """Raises unless the model to compare with, and the bound on the difference, go together."""
    is_by_signature = isinstance(compare_with, Mapping) and set(compare_with) <= set(signatures)
    if signatures and compare_with is not None and not is_by_signature:
        raise InvalidArgumentError(
            "For several models `compare_with` must be a dict {signature: other}.",
            received=f"the keys {list(compare_with)}" if isinstance(compare_with, Mapping) else repr(compare_with),
            fix=f"The signatures are {', '.join(signatures)}.",
        )
    if min_sqnr_db is None:
        return
    as_number("min_sqnr_db", min_sqnr_db, what="a finite number of decibels")
    if compare_with is None:
        raise InvalidArgumentError(
            "`min_sqnr_db` bounds the difference from another model.",
            received="compare_with=None",
            fix="Pass that model as `compare_with`, or bound the difference from `model` itself by `tolerance`.",
        )


def check_numbers(graph: Graph) -> None:
    """Raises for a model with strings or lookups in it, naming the layers."""
    calls = reads_raw(graph)
    if calls:
        layers = ", ".join(f"'{call.op.name}'" for call in calls)
        raise UnsupportedModelError(
            "A .tflite computes with numbers: LiteRT has no operations on strings, and no lookups.",
            received=f"{layers} of '{graph.model.name}'",
            fix="`preprocessing, rest = tfopt.split_preprocessing(model)` cuts that off; export `rest`, which "
            "reads what `preprocessing` gives.",
        )


def check_shapes(model: keras.Model) -> None:
    """Raises for a model whose inputs leave a size free beside the batch."""
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        raise InvalidArgumentError(
            "A .tflite has fixed shapes: each input dimension but the batch has to be known.",
            received=", ".join(f"{tensor.name}: {tuple(tensor.shape)}" for tensor in model.inputs),
            fix="Pass `input_shapes=`, or `data` of that size.",
        )
