"""What has to hold before anything is converted."""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.deploy.convert import IO_TYPES

QUANTIZATIONS = ("auto", "none", "dynamic", "float16", "int8", "int16x8", "weight_only")


def check_options(quantization, io_types, batch_size, sparse, tolerance) -> None:
    """Raises for an unknown option of `export_tflite`, or one out of range."""
    if quantization not in QUANTIZATIONS:
        raise InvalidArgumentError(f"`quantization` is one of {', '.join(QUANTIZATIONS)}.", received=repr(quantization))
    for name, value in zip(("input_type", "output_type"), io_types, strict=True):
        if value not in IO_TYPES:
            raise InvalidArgumentError(f"`{name}` is one of {', '.join(IO_TYPES)}.", received=repr(value))
    is_count = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    if batch_size is not None and not is_count:
        raise InvalidArgumentError(
            "`batch_size` is a positive int.", received=repr(batch_size), fix="Pass None to leave it free."
        )
    if sparse not in (True, False, "auto"):
        raise InvalidArgumentError("`sparse` is 'auto', True or False.", received=repr(sparse))
    if tolerance is not None and not (isinstance(tolerance, (int, float)) and tolerance > 0):
        raise InvalidArgumentError("`tolerance` is a fraction above 0.", received=repr(tolerance))


def check_comparison(compare_with, min_sqnr_db, signatures: list[str]) -> None:
    """Raises unless the model to compare with, and the bound on the difference, go together."""
    is_by_signature = isinstance(compare_with, Mapping) and set(compare_with) <= set(signatures)
    if signatures and compare_with is not None and not is_by_signature:
        raise InvalidArgumentError(
            "For several models `compare_with` is a dict {signature: other}.",
            received=f"the keys {list(compare_with)}" if isinstance(compare_with, Mapping) else repr(compare_with),
            fix=f"The signatures are {', '.join(signatures)}.",
        )
    if min_sqnr_db is None:
        return
    if isinstance(min_sqnr_db, bool) or not isinstance(min_sqnr_db, (int, float)) or not math.isfinite(min_sqnr_db):
        raise InvalidArgumentError("`min_sqnr_db` is a number of decibels.", received=repr(min_sqnr_db))
    if compare_with is None:
        raise InvalidArgumentError(
            "`min_sqnr_db` bounds the difference from another model.",
            received="compare_with=None",
            fix="Pass that model as `compare_with`, or bound the difference from `model` itself by `tolerance`.",
        )


def check_shapes(model: keras.Model) -> None:
    """Raises for a model whose inputs leave a size free beside the batch."""
    if any(None in tensor.shape[1:] for tensor in model.inputs):
        raise InvalidArgumentError(
            "A .tflite has fixed shapes: each input dimension but the batch has to be known.",
            received=", ".join(f"{tensor.name}: {tuple(tensor.shape)}" for tensor in model.inputs),
            fix="Build the model with a full input shape and load the weights into it.",
        )
