"""How sparse each kernel becomes, for TensorBoard."""

from __future__ import annotations

import os

import keras
import numpy as np
import tensorflow as tf

from tfopt.core.checks import as_whole
from tfopt.core.errors import NothingToDoError
from tfopt.core.models import constraints
from tfopt.pruning.channel_masks import ChannelMask
from tfopt.pruning.masks import PruningMask

# What `tf.summary.scalar` writes beside the number; itself it needs the package tensorboard, which only reading should.
SCALAR = tf.compat.v1.SummaryMetadata(
    plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars"), data_class="DATA_CLASS_SCALAR"
)


class PruningSummaries(keras.callbacks.Callback):
    """Writes the sparsity and the threshold of each masked kernel to TensorBoard, during `fit`.

    The scalars are `sparsity/<kernel>`, the fraction of its weights that the mask holds at zero, `sparsity/all`, that
    of all masked kernels together, and `threshold/<kernel>`, the smallest absolute value of a weight that is kept.
    Their step is the optimizer's.

    Args:
        log_dir: folder of the event files.
        update_freq: `"epoch"` writes at the end of each epoch, a number n after every n batches.

    Raises:
        InvalidArgumentError: another `update_freq`.
        NothingToDoError: when `fit` begins with a model that is not pruned.

    Source: TFMOT's `PruningSummaries` (`sparsity/keras/pruning_callbacks.py`), which writes at the begin of each epoch.

    Example:
        >>> import tempfile, tfopt
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="d")])
        >>> pruned = tfopt.prune(model, sparsity=0.75)
        >>> pruned.compile("sgd", "mse")
        >>> folder = tempfile.mkdtemp()
        >>> _ = pruned.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[PruningSummaries(folder)])
        >>> len(os.listdir(folder))
        1
    """

    def __init__(self, log_dir: str | os.PathLike, update_freq: str | int = "epoch"):
        super().__init__()
        what = "'epoch' or a number of batches of at least 1"
        each = None if update_freq == "epoch" else as_whole("update_freq", update_freq, least=1, what=what)
        self.log_dir = os.fspath(log_dir)
        self._each = each
        self._batches = 0

    def on_train_begin(self, logs: dict | None = None) -> None:
        if not self._masks():
            raise NothingToDoError(
                "A model whose sparsity is written has pruning masks.",
                received=f"'{self.model.name}' without any",
                fix="Call `tfopt.prune` first; with sparsity='keep' for a pruned model loaded from disk.",
            )
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self._batches += 1
        if self._each is not None and self._batches % self._each == 0:
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self._each is None:
            self._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        self._writer.close()

    def _masks(self) -> list[tuple[keras.Variable, np.ndarray]]:
        """Each masked kernel, once, with the weights that its masks let stay."""
        found = []
        for variable in constraints.constrained(self.model):
            masks = [constraints.find(variable, kind) for kind in (PruningMask, ChannelMask)]
            if len(variable.shape) > 1 and any(masks):
                stays = [mask.masked(tf.ones(variable.shape)).numpy() > 0 for mask in masks if mask is not None]
                found.append((variable, np.logical_and.reduce(stays)))
        return found

    def _write(self) -> None:
        scalars, kept, size = {}, 0, 0
        for variable, stays in self._masks():
            scalars[f"sparsity/{variable.path}"] = 1 - stays.mean()
            scalars[f"threshold/{variable.path}"] = np.abs(variable.numpy())[stays].min()
            kept, size = kept + stays.sum(), size + stays.size
        scalars["sparsity/all"] = 1 - kept / size
        with self._writer.as_default(step=int(self.model.optimizer.iterations.numpy())):
            for tag, value in scalars.items():
                tf.summary.write(tag, tf.constant(value, tf.float32), metadata=SCALAR)
        self._writer.flush()
