"""How channels pass through products of tensors that are summed over an axis, as matrix products and einsum are."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfopt.core.layers.channels import FIXED, NONE, Channels, Context, Unsupported

NOT_ZERO = "its products are summed, and they are not zero when masked"


def _contracted(context: Context, given: Sequence[tuple[Any, str]], result: str) -> Channels:
    """What einsum makes of tensors: axes of the same letter have the same channels, those not in `result` are summed.

    Masked channels have to be zero in one of the tensors where they are summed over; otherwise they stay, as do those
    that meet a constant.
    """
    operands = [(value, term) for value, term in given if isinstance(value, Channels)]
    for letter in {letter for value, term in given if not isinstance(value, Channels) for letter in term}:
        for own in (x.labels[term.index(letter)] for x, term in operands if letter in term):
            context.keep(own[own != FIXED], "a constant has a value for each")
    letters = {letter for _, term in operands for letter in term}
    labels = {letter: _of_letter(context, operands, letter) for letter in letters}
    zero = {
        letter: any(x.zero for x, term in operands if letter in term) or not labels[letter].any() for letter in letters
    }
    for letter in letters - set(result):
        if not zero[letter]:
            context.keep(labels[letter], NOT_ZERO)
    axes = tuple(labels.get(letter, NONE) for letter in result)
    return Channels(axes, context.shapes[0], all(zero.get(letter, True) for letter in result))


def _of_letter(context: Context, operands: Sequence[tuple[Channels, str]], letter: str) -> np.ndarray:
    """The channels of the axes of one letter; one channel that is spread over several stays."""
    found = [(x.labels[term.index(letter)], x.shape[term.index(letter)]) for x, term in operands if letter in term]
    wide = [labels for labels, size in found if size != 1] or [labels for labels, _ in found]
    for labels, size in found:
        if size == 1 and labels is not wide[0] and len(wide[0]) > 1:
            context.graph.freeze(labels, f"'{context.path}' spreads one over several")
        elif labels is not wide[0]:
            context.graph.tie(wide[0], labels)
    return max(wide, key=len)


def matmul_channels(context: Context, first: Any, second: Any, *_: Any, **__: Any) -> Channels:
    ranks = [_rank(first), _rank(second)]
    rows, columns = "i" * (ranks[0] > 1), "j" * (ranks[1] > 1)
    outer = string.ascii_uppercase[: max(*ranks, 2) - 2]
    front = [outer[len(outer) - max(rank - 2, 0) :] for rank in ranks]
    operands = [(first, f"{front[0]}{rows}k"), (second, f"{front[1]}k{columns}")]
    return _contracted(context, operands, f"{max(front, key=len)}{rows}{columns}")


def _rank(value: Any) -> int:
    return len(value.shape) if isinstance(value, Channels) else np.ndim(value)


def einsum_channels(context: Context, *given: Any, **__: Any) -> Channels:
    terms, arrow, result = context.op.subscripts.replace(" ", "").partition("->")
    if not arrow:
        raise Unsupported("einsum without an arrow")
    unused = [letter for letter in string.ascii_letters if letter not in terms]
    written = [_written_out(term, _rank(x), unused) for term, x in zip(terms.split(","), given, strict=True)]
    if any(len(set(term)) < len(term) for term in written):
        raise Unsupported("einsum takes a diagonal")
    result = _written_out(result, len(context.shapes[0]), unused)
    return _contracted(context, list(zip(given, written, strict=True)), result)


def _written_out(term: str, rank: int, unused: Sequence[str]) -> str:
    """The letters of an einsum term; those under its ellipsis are aligned at the last, as broadcasting has it."""
    before, ellipsis, after = term.partition("...")
    count = rank - len(before) - len(after) if ellipsis else 0
    return before + "".join(unused[:count][::-1]) + after


def dot_channels(context: Context, inputs: list[Channels], *_: Any, **__: Any) -> Channels:
    layer, (first, second) = context.op, inputs
    axes = (layer.axes, layer.axes) if isinstance(layer.axes, int) else layer.axes
    free = string.ascii_lowercase, string.ascii_uppercase
    terms = [_batch_term(x, axis, letters) for x, axis, letters in zip(inputs, axes, free, strict=True)]
    if layer.normalize and not (first.zero and second.zero):
        for x, term in zip(inputs, terms, strict=True):
            context.keep(x.labels[term.index("0")], NOT_ZERO)
    result = "1" + "".join(letter for term in terms for letter in term if letter not in "01")
    output = _contracted(context, list(zip(inputs, terms, strict=True)), result)
    return Channels((*output.labels, *[NONE] * (len(context.shapes[0]) - len(result))), output.shape, output.zero)


def _batch_term(x: Channels, axis: int, free: str) -> str:
    """The term of an operand: "1" for the batch, "0" for the axis that is summed over."""
    letters = ["1", *free[: len(x.shape) - 1]]
    letters[axis % len(x.shape)] = "0"
    return "".join(letters)
