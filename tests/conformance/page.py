"""Makes `docs/layers.md` from the table: `PYTHONPATH=tests python -m conformance.page`."""

from __future__ import annotations

from pathlib import Path

from conformance.rows import NOTHING, SIXTEEN, No
from conformance.table import FAMILIES, WITHOUT

PAGE = Path(__file__).resolve().parents[2] / "docs" / "layers.md"

HEAD = """\
# Layers

What tfopt does with each layer and op of Keras, and with its own. This page is made from the table that the tests
run, `tests/conformance/`: each cell is checked by calling the verb, so a "no" fails as soon as it can be done.

- **prune**, **cluster**: the weights that `prune` masks and `cluster` gives shared values. Other weights, as biases and
  the scales of normalization, stay as they are.
- **channels**: "yes" where `prune(pattern="channel")` and `shrink` take channels out of the layer and of the layers
  before it. With "no", the channels that the layer reads stay, and `prune` says so.
- **int8**, **int16x8**: "integers" where the .tflite file computes the layer in integers. Otherwise the operations that
  compute in float, as the file names them, or "no" where there is no file. Where the notes do not give a reason for a
  float operation in int16x8, LiteRT has no integer version with 16-bit activations.

Copies, `strip`, and `save` with `load_model` work for all of them, with equal weights and outputs. A layer of your own
has no row: it stays float, and keeps its channels, until `@tfopt.register_layer` says what it is.

What holds for your model, the verbs say themselves:

```python
import warnings

import keras

import tfopt

video = keras.Sequential([keras.Input((4, 4, 4, 1)), keras.layers.Conv3D(2, 2, name="conv"), keras.layers.Dense(3)])
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    quantized = tfopt.quantize(video)
str(said[0].message)  # -> "These layers stay float: 'conv' (Conv3D: LiteRT has no integer 3-D convolution)."
```
"""
COLUMNS = "| layer | prune, cluster | channels | int8 | int16x8 | notes |\n|---|---|---|---|---|---|"


def cell_of(cell) -> str:
    """How a file computes the layer, in a word or by its operations."""
    if isinstance(cell, No):
        return "no"
    ops = [op.replace("*", " x ") for op in cell.floats.split()]
    return f"float: {', '.join(ops)}" if ops else "integers"


def notes_of(row) -> str:
    """The reasons of a row, each once, with the verb that gives it."""
    cells = {"channels": row.channels, "int8": row.int8, "int16x8": row.int16x8, "training": row.trains}
    reasons: dict[str, list[str]] = {}
    for name, cell in cells.items():
        if cell is not None and cell.reason and cell.reason not in (SIXTEEN, NOTHING):
            reasons.setdefault(cell.reason, []).append(name)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
    return "; ".join([*notes, row.note] if row.note else notes).replace("|", "\\|")


def line_of(row) -> str:
    kernels = ", ".join(row.kernels) or "-"
    channels = "yes" if row.channels is None else "-" if row.channels.reason == NOTHING else "no"
    cells = [row.title, kernels, channels, cell_of(row.int8), cell_of(row.int16x8), notes_of(row)]
    return f"| {' | '.join(cells)} |"


def text() -> str:
    """The page."""
    parts = [HEAD]
    for title, family in FAMILIES.items():
        parts.append("\n".join([f"## {title}", "", COLUMNS, *map(line_of, family), ""]))
    without = [f"- {', '.join(cls.__name__ for cls in classes)}: {why}." for why, classes in WITHOUT.items() if classes]
    parts.append("\n".join(["## Without a row", "", *without, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
