"""What a student gets in a batch: its inputs, and what the teacher made of them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Taught(NamedTuple):
    """Inputs with the teacher's answers to them: what `x` is in a batch of cached data.

    Args:
        inputs: what the student gets.
        outputs: the teacher's outputs, in their structure: logits where it ends in a softmax or sigmoid.
        features: path of a layer -> its values.
    """

    inputs: Any
    outputs: Any
    features: dict[str, Any]
