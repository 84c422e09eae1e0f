"""What `quantize` does to one layer or op: plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Treatment:
    """What happens to one op. `kernels` to round, `activation` to take out of the layer, `output` to quantize."""

    kernels: dict[str, tuple[int, ...]]
    activation: Callable | None = None
    output: bool = False
    affine: bool = False  # scales and shifts channels, with no kernel before it to fold into
    composite: bool = False  # has a wrapper class of its own, see `composites.py`
    reason: str = ""  # why it stays float
    note: str = ""  # what of it stays float, and why

    @property
    def is_float(self) -> bool:
        return bool(self.reason)

    @property
    def is_plain(self) -> bool:
        """Nothing to add: the op moves values, or its follower quantizes for it."""
        return not (self.kernels or self.activation or self.output or self.affine or self.composite)
