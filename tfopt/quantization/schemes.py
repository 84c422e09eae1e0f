"""What the numbers of a quantized model are stored and computed in, by name; for a whole model or layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfopt.core.checks import as_choice
from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.graph import Graph, check_patterns, is_selected

HALF = 16  # `weight_bits` of weights that are half-precision floats
PACKED_BITS = (2, 4, 8)  # in which LiteRT stores integer kernels


@dataclass(frozen=True)
class Scheme:
    """How the layers of a model are quantized.

    Args:
        name: as `quantize` takes it.
        weight_bits: 2 to 8 for integers, symmetric around zero; 16 for half-precision floats.
        activation_bits: 8 or 16; None where only weights are quantized and the file computes in float.
    """

    name: str
    weight_bits: int
    activation_bits: int | None = None

    @property
    def stored_bits(self) -> int:
        """Bits that a weight takes in the file."""
        return min((bits for bits in PACKED_BITS if bits >= self.weight_bits), default=self.weight_bits)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme("int8", 8, 8),
        Scheme("int16x8", 8, 16),
        Scheme("float16", HALF),
        *(Scheme(f"int{bits}_weight_only", bits) for bits in range(8, 1, -1)),
    )
}


def scheme_of(name: object, argument: str = "scheme") -> Scheme:
    """The scheme of that name.

    Raises:
        InvalidArgumentError: there is none; the message lists all.

    Example:
        >>> scheme_of("int3_weight_only").weight_bits, scheme_of("int3_weight_only").stored_bits
        (3, 4)
    """
    return SCHEMES[as_choice(argument, name, SCHEMES)]


class Choice:
    """The scheme of each layer of a model.

    Args:
        graph: of the model.
        base: of all layers that nothing else is said of.
        included, excluded: patterns as `quantize` takes them.
        overrides: `{layer name or glob: name of a scheme, or None for float}`. Where several fit, the last one counts.

    Raises:
        InvalidArgumentError: an unknown scheme or layer, or schemes that no file can hold together.

    Example:
        >>> import keras
        >>> from tfopt.core.models.graph import read
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a"), keras.layers.Dense(1)])
        >>> choice = Choice(read(model), SCHEMES["int8"], overrides={"*": "int4_weight_only", "a": None})
        >>> choice.of("a"), choice.of(model.layers[1].name).weight_bits
        (None, 4)
    """

    def __init__(
        self,
        graph: Graph,
        base: Scheme,
        included: list[str] | None = None,
        excluded: list[str] | None = None,
        overrides: Mapping[str, str | None] | None = None,
    ):
        self.base, self.included, self.excluded = base, included or [], excluded or []
        self.overrides = [
            (pattern, None if name is None else scheme_of(name, f"overrides[{pattern!r}]"))
            for pattern, name in _checked(overrides).items()
        ]
        for argument, patterns in (
            ("include", self.included),
            ("exclude", self.excluded),
            ("overrides", [pattern for pattern, _ in self.overrides]),
        ):
            check_patterns(graph, patterns, argument)
        self._check_together()

    def of(self, path: str) -> Scheme | None:
        """The scheme of a layer by its path; None for a layer that is to stay float."""
        found = self.base if is_selected(path, self.included, self.excluded) else None
        for pattern, scheme in self.overrides:
            if is_selected(path, [pattern], []):
                found = scheme
        return found

    def _check_together(self) -> None:
        """One file has one kind of activation; integer kernels of layers that compute in float go with any."""
        base = self.base
        for pattern, scheme in self.overrides:
            if scheme is None or scheme == base:
                continue
            if scheme.activation_bits is not None or scheme.weight_bits == HALF:
                raise InvalidArgumentError(
                    f"In a model of scheme '{base.name}' a layer can be float (None), '{base.name}' or weight-only.",
                    received=f"overrides={{{pattern!r}: {scheme.name!r}}}",
                    fix="LiteRT has no operation with activations of two kinds. Choose the scheme of most layers as "
                    "`scheme`, and one that goes with it for the others.",
                )
        chosen = [scheme for _, scheme in self.overrides if scheme != base]
        if base.weight_bits == HALF and (self.included or self.excluded or chosen):
            raise InvalidArgumentError(
                "A float16 file holds all its weights in 16 bits: no layer can be left out or chosen.",
                received="scheme='float16' with `include`, `exclude` or `overrides`",
                fix="Use 'int8_weight_only', of which single layers can be left in float.",
            )

    def notes(self) -> list[str]:
        """What of the schemes the file cannot hold as it is, in sentences."""
        schemes = {scheme.name: scheme for scheme in (self.base, *(s for _, s in self.overrides)) if scheme is not None}
        return [
            f"LiteRT has no {scheme.weight_bits}-bit tensors: '{name}' takes {scheme.stored_bits} bits a weight in the "
            "file, of which compression (gzip) saves the unused ones."
            for name, scheme in schemes.items()
            if scheme.stored_bits != scheme.weight_bits
        ]


def check_tfmot(base: Scheme, overrides: object) -> None:
    """Raises for what TFMOT does not have."""
    if base.name != "int8" or overrides is not None:
        raise InvalidArgumentError(
            "TFMOT quantizes tf_keras models in 8 bits only.",
            received=f"scheme='{base.name}', overrides={overrides!r}",
            fix="Port the model to Keras 3, or use scheme='int8' with `include` and `exclude`.",
        )


def _checked(overrides: object) -> Mapping[str, str | None]:
    if overrides is None:
        return {}
    if not isinstance(overrides, Mapping) or not all(isinstance(pattern, str) for pattern in overrides):
        raise InvalidArgumentError(
            "`overrides` is a dict {layer name or glob: scheme name or None}.", received=repr(overrides)
        )
    return overrides
