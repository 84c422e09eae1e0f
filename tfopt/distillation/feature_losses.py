"""Losses between what layers inside a student and its teacher give: tensors in, one loss a sample out, shape (batch,).

All is computed in float32, whatever comes in. Features are (batch, ..., channels), channels last. Losses over pairs and
triples of samples are the paper's value in the mean over the batch; each sample gets the part in which it stands first,
of angles that in which it is the vertex.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from tfopt.core.errors import InvalidArgumentError
from tfopt.distillation.losses import huber
from tfopt.distillation.shapes import (
    both_shapes,
    check_features,
    check_same_shape,
    common_grid,
    sample_mean,
    without_padding,
)

COINCIDENT = 1e-6  # squared distance of two samples over their squared norms, below which float32 sees no direction


def feature_matching(student: Any, teacher: Any, mask: Any = None) -> Any:
    """Mean squared difference of features, on the smaller grid where the grids differ.

    The mean, not the sum of the paper, so that a weight means the same for a layer of any size.

    Args:
        student, teacher: features (batch, ..., channels) of as many channels.
        mask: booleans (batch, positions) of the positions that count, the same for both; None for all.

    Returns:
        float32 (batch,).

    Raises:
        InvalidArgumentError: if the ranks or the channels differ.

    Source: Romero et al. 2015 (FitNets), https://arxiv.org/abs/1412.6550, equation 3.

    Example:
        >>> import numpy as np
        >>> feature_matching(np.array([[[1.0], [5.0]]]), np.array([[[2.0]]])).numpy().tolist()  # (3 - 2)^2
        [1.0]
    """
    check_features(student.shape, teacher.shape)
    if student.shape[-1] != teacher.shape[-1]:
        raise InvalidArgumentError(
            "Features are compared channel by channel.",
            received=both_shapes(student.shape, teacher.shape),
            fix="Use the layer FeatureMatching, which projects to the teacher's channels.",
        )
    student, teacher = common_grid(*without_padding(_float(student), _float(teacher), mask))
    return sample_mean(ops.square(student - teacher), mask)


def attention_transfer(student: Any, teacher: Any, power: float = 2.0, mask: Any = None) -> Any:
    """Half the squared distance of the attention maps: at each position the sum of |feature|^power, at length 1.

    The paper has the distance, which has no gradient where both agree; squared it is in the authors' code. Channels may
    differ; of different grids the larger map is averaged to the smaller.

    Args:
        student, teacher: features (batch, positions, channels), with one to any number of axes of positions.
        power: of the features, 1 or more.
        mask: booleans (batch, positions) of the positions that count, the same for both; None for all.

    Returns:
        float32 (batch,), in [0, 1].

    Raises:
        InvalidArgumentError: if the ranks differ or there is no axis of positions.

    Source: Zagoruyko and Komodakis 2017, https://arxiv.org/abs/1612.03928, section 3.1, equation 2.

    Example:
        >>> import numpy as np
        >>> at_first, at_second = np.array([[[3.0], [0.0]]]), np.array([[[0.0, 0.0], [1.0, 2.0]]])
        >>> attention_transfer(at_first, at_second).numpy().tolist()  # 1 - cosine of the maps
        [1.0]
    """
    check_features(student.shape, teacher.shape, positions=True)
    student, teacher = without_padding(_float(student), _float(teacher), mask)
    maps = common_grid(_attention(student, power), _attention(teacher, power))
    student, teacher = (_unit(_rows(values)) for values in maps)
    return 0.5 * ops.sum(ops.square(student - teacher), -1)


def relational_distance(student: Any, teacher: Any, mask: Any = None) -> Any:
    """Huber loss of the distances between samples, in units of the mean distance in the batch.

    Mean over all pairs of two different samples, where the paper has the sum. A batch of one has a loss of 0.

    Args:
        student, teacher: features (batch, ...) of any two shapes.
        mask: booleans (batch, positions) of the positions that count, the same for both; None for all.

    Returns:
        float32 (batch,).

    Source: Park et al. 2019, https://arxiv.org/abs/1904.05068, section 3.2.1.

    Example:
        >>> import numpy as np
        >>> on_a_line, other = np.array([[0.0], [1.0], [2.0]]), np.array([[0.0], [4.0], [8.0]])
        >>> relational_distance(on_a_line, other).numpy().tolist()
        [0.0, 0.0, 0.0]
    """
    student, teacher = (_distances(rows) for rows in _all_rows(student, teacher, mask))
    return ops.sum(huber(student - teacher), -1) / _at_least_1(_count(student) - 1.0)


def relational_angle(student: Any, teacher: Any, mask: Any = None) -> Any:
    """Huber loss of the cosines of the angles that any three samples form.

    Mean over all triples of different samples, where the paper has the sum. A batch of two or fewer has a loss of 0.
    Time and memory grow with the cube of the batch.

    Args:
        student, teacher: features (batch, ...) of any two shapes.
        mask: booleans (batch, positions) of the positions that count, the same for both; None for all.

    Returns:
        float32 (batch,), of the angles at each sample.

    Source: Park et al. 2019, https://arxiv.org/abs/1904.05068, section 3.2.2.

    Example:
        >>> import numpy as np
        >>> corner, line = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]), np.array([[-1.0], [0.0], [1.0]])
        >>> round(float(relational_angle(corner, line)[1]), 5)  # cosine 0 against -1
        0.5
    """
    student, teacher = (_cosines(rows) for rows in _all_rows(student, teacher, mask))
    count = _count(student)
    triples = huber(student - teacher) * _others(student)
    return ops.sum(triples, (1, 2)) / _at_least_1((count - 1.0) * (count - 2.0))


def similarity_preserving(student: Any, teacher: Any, mask: Any = None) -> Any:
    """Squared difference of how alike samples are: the rows of the Gram matrix of the batch, each at length 1.

    Args:
        student, teacher: features (batch, ...) of any two shapes.
        mask: booleans (batch, positions) of the positions that count, the same for both; None for all.

    Returns:
        float32 (batch,).

    Source: Tung and Mori 2019, https://arxiv.org/abs/1907.09682, section 3.

    Example:
        >>> import numpy as np
        >>> alike, different = np.array([[1.0], [1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(similarity_preserving(alike, different)[0]), 5)  # rows [0.707, 0.707] and [1, 0], over 2
        0.29289
    """
    student, teacher = (_unit(_gram(rows)) for rows in _all_rows(student, teacher, mask))
    return ops.sum(ops.square(student - teacher), -1) / _count(student)


def contrastive(student: Any, teacher: Any, temperature: float = 0.1) -> Any:
    """Cross-entropy of finding, among the teacher's embeddings of the batch, the one of the same sample (InfoNCE).

    Args:
        student, teacher: embeddings (batch, dimensions); their directions count.
        temperature: divides the cosines, above 0.

    Returns:
        float32 (batch,), in nats; log(batch) where nothing is told apart.

    Raises:
        InvalidArgumentError: if the dimensions differ.

    Source: Tian et al. 2020 (CRD), https://arxiv.org/abs/1910.10699, with the other samples of the batch as negatives,
    as van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, equation 4.

    Example:
        >>> import numpy as np
        >>> round(float(contrastive(np.eye(2), 3 * np.eye(2), temperature=1.0)[0]), 5)  # log(1 + exp(-1))
        0.31326
    """
    check_same_shape(student.shape, teacher.shape, "ContrastiveRepresentation projects both to one width.")
    student, teacher = _unit(_float(student)), _unit(_float(teacher))
    cosines = ops.matmul(student, ops.transpose(teacher)) / temperature
    return -ops.diagonal(ops.log_softmax(cosines, -1))


def _attention(features: Any, power: float) -> Any:
    """The map (batch, positions, 1)."""
    axes = tuple(range(1, len(features.shape)))
    features = ops.abs(_at_most_1(features, axes))
    powers = ops.square(features) if power == 2 else ops.power(features, power)
    return ops.sum(powers, -1, keepdims=True)


def _distances(rows: Any) -> Any:
    """Distances (batch, batch) in units of their mean."""
    squares = _squared_distances(_gram(_centred(rows)))
    apart = squares > 0
    distances = ops.where(apart, ops.sqrt(ops.where(apart, squares, 1.0)), 0.0)
    count = _count(squares)
    mean = ops.sum(distances) / _at_least_1(count * (count - 1.0))
    return distances / ops.where(mean > 0, mean, 1.0)


def _cosines(rows: Any) -> Any:
    """Cosines (vertex, one, other) of the angles between three samples; 0 where two of them coincide."""
    gram = _gram(_centred(rows))
    squares = _squared_distances(gram)
    apart = squares > 0
    inverse = ops.where(apart, ops.rsqrt(ops.where(apart, squares, 1.0)), 0.0)
    inner = gram[None] - gram[:, :, None] - gram[:, None, :] + ops.diagonal(gram)[:, None, None]
    return inner * inverse[:, :, None] * inverse[:, None, :]


def _squared_distances(gram: Any) -> Any:
    """From inner products; exactly 0 for samples that coincide, and no gradient then."""
    norms = ops.diagonal(gram)
    scale = norms[:, None] + norms[None, :]
    squares = scale - 2.0 * gram
    return ops.where(ops.logical_and(squares > COINCIDENT * scale, _others(gram) > 0), squares, 0.0)


def _centred(rows: Any) -> Any:
    """Rows around their mean, scaled to at most 1: that moves no distance and saves the digits of inner products."""
    return _at_most_1(rows - ops.mean(rows, 0, keepdims=True), None)


def _others(square: Any) -> Any:
    """1 for two different samples, 0 on the diagonal."""
    return 1.0 - ops.eye(ops.shape(square)[0])


def _gram(rows: Any) -> Any:
    return ops.matmul(rows, ops.transpose(rows))


def _unit(rows: Any) -> Any:
    """Rows of length 1; a row of zeros stays one."""
    rows = _at_most_1(rows, -1)
    squares = ops.sum(ops.square(rows), -1, keepdims=True)
    return rows * ops.rsqrt(ops.where(squares > 0, squares, 1.0))


def _at_most_1(values: Any, axes: Any) -> Any:
    """Values over the largest magnitude along axes, so that no square overflows or vanishes.

    Used where the result does not change with the scale, whose gradient is zero then and is left out.
    """
    largest = ops.stop_gradient(ops.max(ops.abs(values), axes, keepdims=True))
    return values / ops.where(largest > 0, largest, 1.0)


def _all_rows(student: Any, teacher: Any, mask: Any) -> list:
    """All features of each sample in a row, scaled to at most 1."""
    both = without_padding(_float(student), _float(teacher), mask)
    return [_at_most_1(_rows(values), None) for values in both]


def _rows(features: Any) -> Any:
    """(batch, features)."""
    return ops.reshape(features, (ops.shape(features)[0], -1))


def _float(values: Any) -> Any:
    return ops.cast(values, "float32")


def _count(rows: Any) -> Any:
    return ops.cast(ops.shape(rows)[0], "float32")


def _at_least_1(count: Any) -> Any:
    return ops.maximum(count, 1.0)
