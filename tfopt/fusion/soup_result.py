"""What `average_weights` made and tried."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras

from tfopt.core.reporting.figures import COLOURS, label_axes, new_figure, plain
from tfopt.core.reporting.render import UNKNOWN, Report, Table, count, decimal

if TYPE_CHECKING:
    from tfopt.core.reporting.figures import Figure


@dataclass(frozen=True)
class Mix:
    """The mean of some of the models.

    Args:
        members: numbers of the models.
        score: on the validation data.
    """

    members: tuple[int, ...]
    score: float


@dataclass(frozen=True, repr=False)
class Soup(Report):
    """A model with averaged weights, and what was tried. Prints as a table, shows in Jupyter, `save`s.

    Args:
        model: with the weights.
        members: numbers of the models whose mean it is; one where no mean is as good as that model.
        models: names.
        method: `"uniform"` or `"greedy"`.
        metric, mode: name of the score, and whether it is the better the higher (`"max"`) or the lower (`"min"`); empty
            without validation data, as all that follows.
        samples: of the validation data.
        score: of `model` on them.
        scores: of each model.
        tried: the means that were tried, with their scores, in order.
    """

    model: keras.Model
    members: tuple[int, ...]
    models: tuple[str, ...]
    method: str
    metric: str = ""
    mode: str = ""
    samples: int = 0
    score: float | None = None
    scores: tuple[float, ...] = ()
    tried: tuple[Mix, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.method.capitalize()} soup of {len(self.models)} models"

    def tables(self) -> list[Table]:
        scores = self.scores or (None,) * len(self.models)
        rows = [
            (name, decimal(each), "yes" if place in self.members else "no")
            for place, (name, each) in enumerate(zip(self.models, scores, strict=True))
        ]
        rows += [(self._names(mix.members), decimal(mix.score), UNKNOWN) for mix in self.tried]
        total = ("result", decimal(self.score), str(len(self.members)))
        note = f"On {count(self.samples)} samples." if self.samples else "Taken on trust: there are no validation data."
        return [Table(self.title, ("model", self.metric or "score", "in the soup"), tuple(rows), total, notes=(note,))]

    def figures(self) -> dict[str, Figure]:
        return {"Scores of the models and of their means.": self.plot()} if self.samples else {}

    def plot(self) -> Figure:
        """The scores as points."""
        figure = new_figure(8, 0.9 + 0.4 * (len(self.models) + len(self.tried)))
        axes = figure.subplots()
        names = [*self.models, *(self._names(mix.members) for mix in self.tried)]
        axes.plot(
            [*self.scores, *(mix.score for mix in self.tried)], [plain(name) for name in names], "o", color=COLOURS[0]
        )
        axes.invert_yaxis()
        label_axes(axes, self.metric)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """The numbers, unrounded, without the model."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("model", "tried")]
        tried = [dataclasses.asdict(mix) for mix in self.tried]
        return {"model": self.model.name, **{name: getattr(self, name) for name in names}, "tried": tried}

    def _names(self, members: Sequence[int]) -> str:
        return f"mean of {', '.join(self.models[place] for place in members)}"
