"""The outputs of a model, their names and order, and what of labels and weights belongs to each."""

from __future__ import annotations

from typing import Any

import keras

from tfopt.core.checks import is_whole
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.keras_internals import functional_of


def has_keys(model: keras.Model) -> bool:
    """True if the outputs are a dict, whose keys say which is which; else their order does."""
    return isinstance(functional_of(model).output, dict)


def output_shapes(model: keras.Model) -> list[tuple[int | None, ...]]:
    """Shapes of the outputs in flat order, the batch with them."""
    return [tuple(tensor.shape) for tensor in functional_of(model).outputs]


def output_index(names: list[str], wanted: str | int, of: str) -> int:
    """The place of an output among `names`.

    Raises:
        InvalidArgumentError: if there is none of that name or number.

    Example:
        >>> output_index(["a", "b"], "b", "student")
        1
    """
    if isinstance(wanted, str) and wanted in names:
        return names.index(wanted)
    if not is_whole(wanted) or not 0 <= int(wanted) < len(names):
        raise InvalidArgumentError(
            "`output` must be the name of an output of student and teacher, or its number from 0.",
            received=f"{wanted!r}, which the {of} does not have",
            fix=f"It has {', '.join(names)}.",
        )
    return int(wanted)


def part_of(values: Any, index: int, names: list[str]) -> Any:
    """What of labels, sample weights or losses belongs to one output; one for all outputs belongs to each.

    Args:
        values: one, a list with one for each output in order, a dict by name, or None.
        index: of the output.
        names: of all outputs.

    Example:
        >>> part_of({"b": 2.0}, 1, ["a", "b"]), part_of([1.0, 2.0], 0, ["a", "b"]), part_of(3.0, 1, ["a", "b"])
        (2.0, 1.0, 3.0)
    """
    if isinstance(values, dict):
        return values.get(names[index])
    if isinstance(values, (list, tuple)) and len(values) == len(names):
        return values[index]
    return values
