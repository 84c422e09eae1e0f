"""The verb `drop_layers`: the same network with fewer layers."""

from __future__ import annotations

import keras

from tfopt.core.errors import InvalidArgumentError
from tfopt.core.models.blocks import Block, Blocks
from tfopt.core.models.graph import as_patterns, read


def drop_layers(model: keras.Model, names: str | list[str], *, verbose: int = 0) -> keras.Model:
    """Returns a copy of `model` without the named layers, residual blocks or nested models; fine-tune it then.

    What reads the output of a dropped layer reads its input instead, so both need the same shape and dtype:

    - an addition (`keras.layers.Add` or `x + y`) with an identity skip names the residual block that ends in it: the
      branch goes, the skip stays, and so does an activation behind the addition;
    - a layer with a kernel goes together with the normalization, activation and dropout that follow it, unless these
      give the output of the model;
    - any other layer or op, and a nested model as a whole, goes alone.

    Args:
        model: a built Keras model.
        names: names or globs, such as `"block3_add"` or `"encoder/block_*"`. Layers whose shape changes may be among
            those that a glob fits as long as the block around them goes.
        verbose: 1 prints what is dropped.

    Returns:
        A new, uncompiled model with the weights, weight constraints and names of the layers that stay.

    Raises:
        InvalidArgumentError: no layer of that name, one that cannot be bypassed, or nothing would be left.
        UnsupportedModelError: an unbuilt model, or one that is no graph.

    Source: residual networks without some of their blocks, Veit et al. 2016, https://arxiv.org/abs/1605.06431.

    Example:
        >>> dense = keras.layers.Dense
        >>> model = keras.Sequential([keras.Input((8,)), dense(8, name="a"), dense(8, name="b"), dense(2, name="c")])
        >>> [layer.name for layer in drop_layers(model, "b").layers]
        ['a', 'c']
    """
    blocks = Blocks(read(model))
    patterns = as_patterns(names, "names")
    if not patterns:
        raise InvalidArgumentError("`names` holds at least one name or glob.", received=repr(names))
    dropped = _dropped(blocks, blocks.find(patterns, "names"))
    edited = blocks.without(dropped).model
    if verbose:
        for block in dropped:
            print(f"Dropped {block.name} ({block.kind}): {', '.join(block.paths)}")
    return edited


def _dropped(blocks: Blocks, paths: list[str]) -> list[Block]:
    """The blocks at these paths; one inside another block is left out."""
    found: dict[str, Block] = {}
    failed: dict[str, InvalidArgumentError] = {}
    for path in paths:
        try:
            found[path] = blocks.block(path)
        except InvalidArgumentError as reason:
            failed[path] = reason
    covered = {inner for path, block in found.items() for inner in block.paths if inner != path}
    for path, error in failed.items():
        if path not in covered:
            raise error
    return [block for path, block in found.items() if path not in covered]
