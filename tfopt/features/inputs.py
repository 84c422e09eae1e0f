"""The features of a model's inputs: which can be dropped, and the channels that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfopt.core.channels.graph import ChannelGraph
from tfopt.core.errors import InvalidArgumentError, NothingToDoError, UnsupportedModelError
from tfopt.core.keras_internals import input_names
from tfopt.core.layers.channels import FIXED
from tfopt.core.models.fake_quantized import check_not_quantized
from tfopt.core.models.graph import Graph, check_finite, read
from tfopt.core.models.opening import opened

Place = tuple[str, int]  # name of an input, index of a feature


class Features:
    """The features of a model: the indices of the last axis of each of its inputs.

    Args:
        graph: of the model.
        zero: a dropped feature counts as 0; otherwise as some constant.
    """

    def __init__(self, graph: Graph, *, zero: bool = True):
        self.graph = ChannelGraph(graph, features=True, zero=zero)
        self.inputs = input_names(graph.model)
        channels = dict(zip(self.inputs, self.graph.features, strict=True))
        self.labels = {name: each.labels[-1] for name, each in channels.items()}
        self._roots = {name: self.graph.roots(labels) for name, labels in self.labels.items()}
        self._makers = {
            int(root): slot.path for slot in self.graph.slots if slot.role == "out" for root in np.unique(slot.labels)
        }

    def width(self, name: str) -> int:
        """How many features an input has; 1 where the size of its last axis is unknown."""
        return len(self.labels[name])

    def why_kept(self, name: str, index: int) -> str:
        """The reason why a feature cannot be dropped, "" if it can."""
        root = int(self._roots[name][index])
        if root == FIXED:
            return self.graph.reason(self.labels[name][[index]])
        if self.width(name) == 1:
            return "an input keeps at least one feature"
        return f"it is merged with what '{self._makers[root]}' gives" if root in self._makers else ""

    def channels(self, dropped: Mapping[str, np.ndarray]) -> np.ndarray:
        """The channels to remove.

        Raises:
            UnsupportedModelError: for features that have to stay, or that go with others only.
        """
        for name, indices in dropped.items():
            for index in indices:
                reason = self.why_kept(name, index)
                if reason:
                    raise UnsupportedModelError(
                        "A feature can be dropped where each layer that sees it treats it apart from the others.",
                        received=f"feature {index} of input '{name}': {reason}",
                        fix="`rank_features` lists the features that can be dropped.",
                    )
        removed = np.unique(np.concatenate([self._roots[name][indices] for name, indices in dropped.items()]))
        for name, roots in self._roots.items():
            left = np.setdiff1d(np.flatnonzero(np.isin(roots, removed)), dropped.get(name, []))
            if len(left):
                raise UnsupportedModelError(
                    "Features that the model merges with each other are dropped together.",
                    received=f"without {_listed(left)} of input '{name}'",
                    fix="Name these too.",
                )
        if any(np.isin(part, removed).all() for part in self.graph.parts):
            raise UnsupportedModelError(
                "Of the features that the model picks out of an input as one part, at least one has to stay.",
                received="all features of a slice or split",
                fix="Keep one of them.",
            )
        return removed

    def dropped(self, drop: Any, keep: Any) -> dict[str, np.ndarray]:
        """Name of an input -> ascending indices of its features to drop, from the user's `drop` or `keep`."""
        if (drop is None) == (keep is None):
            raise InvalidArgumentError(
                "Either `drop` or `keep` names features.", received="both" if keep is not None else "neither"
            )
        argument, value = ("drop", drop) if keep is None else ("keep", keep)
        chosen = {
            name: self._indices(name, indices, argument)
            for name, indices in self.by_input(value, argument, "indices").items()
        }
        if argument == "keep":
            chosen = {name: np.setdiff1d(np.arange(self.width(name)), indices) for name, indices in chosen.items()}
        for name, indices in chosen.items():
            if len(indices) == self.width(name):
                raise InvalidArgumentError(
                    "An input keeps at least one feature.", received=f"none of {self.width(name)} of input '{name}'"
                )
        chosen = {name: indices for name, indices in chosen.items() if len(indices)}
        if not chosen:
            raise NothingToDoError("At least one feature has to go.", received=f"{argument}={value!r}")
        return chosen

    def by_input(self, value: Any, argument: str, content: str) -> dict[str, Any]:
        """The user's argument as a dict over the names of inputs."""
        if not isinstance(value, Mapping):
            if len(self.inputs) == 1:
                return {self.inputs[0]: value}
            raise InvalidArgumentError(
                f"`{argument}` is a dict {{name of an input: {content}}} for a model of several inputs.",
                received=type(value).__name__,
                fix=f"The inputs are {', '.join(self.inputs)}.",
            )
        unknown = [name for name in value if name not in self.inputs]
        if unknown:
            raise InvalidArgumentError(
                f"The keys of `{argument}` are names of inputs.",
                received=", ".join(map(repr, unknown)),
                fix=f"The inputs are {', '.join(self.inputs)}.",
            )
        return dict(value)

    def _indices(self, name: str, value: Any, argument: str) -> np.ndarray:
        try:
            indices = np.atleast_1d(np.asarray(value))
        except ValueError:  # a ragged list
            indices = np.array([None])
        whole = np.issubdtype(indices.dtype, np.integer) or not indices.size
        if not whole or indices.ndim != 1:
            raise InvalidArgumentError(
                f"`{argument}` holds indices of features, whole numbers.",
                received=type(value).__name__ if indices.dtype == object else repr(value),
                fix="Of a ranking, pass `ranking.lowest(count)`.",
            )
        outside = indices[(indices < 0) | (indices >= self.width(name))]
        if len(outside):
            raise InvalidArgumentError(
                f"The features of input '{name}' have the indices 0 to {self.width(name) - 1}.",
                received=_listed(outside),
                fix="A ranking is of use for the model that it was made of.",
            )
        unique, counts = np.unique(indices.astype(int), return_counts=True)
        if (counts > 1).any():
            raise InvalidArgumentError(
                f"`{argument}` names each feature once.", received=f"{_listed(unique[counts > 1])} more than once"
            )
        return unique


def read_float(model: keras.Model, verb: str) -> Graph:
    """The graph of a model; raises for one that is not built, quantized, or with NaN in its weights."""
    graph = opened(read(model))
    check_not_quantized(graph, verb)
    check_finite(graph)
    return graph


def _listed(indices: np.ndarray) -> str:
    shown = ", ".join(map(str, indices[:10]))
    return shown + (f", ... ({len(indices)} features)" if len(indices) > 10 else "")
