"""One layer in a summary."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRow:
    """One layer, or op that computes.

    Args:
        path: with nested models as folders, `"encoder/conv1"`.
        parameters: numbers in all its weights.
        nonzero_parameters: those that are not 0.
        kernel_parameters: numbers in the kernels `prune` may mask.
        macs: multiply-accumulates for one sample, None where unknown.
    """

    path: str
    kind: str
    output_shape: tuple[int | None, ...]
    parameters: int
    nonzero_parameters: int
    kernel_parameters: int
    kernel_nonzero: int
    macs: int | None

    @property
    def sparsity(self) -> float | None:
        """Fraction of zeros in the kernels, None without kernels."""
        return fraction_of_zeros(self.kernel_parameters, self.kernel_nonzero)


def fraction_of_zeros(parameters: int, nonzero: int) -> float | None:
    return 1 - nonzero / parameters if parameters else None
