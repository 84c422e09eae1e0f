"""What tests of searches by several processes search; the processes import it, too."""

import os
import signal
import time
from pathlib import Path

import keras
import keras_tuner
import numpy as np

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(1)
DATA = (X, Y)
EPOCHS = 4


def net(units, lr=0.01):
    keras.utils.set_random_seed(units)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, name="a"), keras.layers.Dense(1, name="b")])
    model.compile(keras.optimizers.Adam(lr), "mse", run_eagerly=True)
    return model


class Watched(keras_tuner.HyperModel):
    """Notes each epoch in a folder: `{units}.{process}.{epoch}`. Sleeps after each; kills its process where told to.

    Args:
        once: units that kill the process after the second epoch, but only the first time.
        always: units that kill it whenever they are trained.
        together: no process begins a second epoch before so many have ended one.
    """

    def __init__(self, folder, seconds=0.0, once=(), always=(), together=1):
        super().__init__(name="watched")
        self.folder, self.seconds, self.once, self.always = Path(folder), seconds, once, always
        self.together = together

    def build(self, hp):
        return net(hp.Choice("units", [1, 2, 3, 4, 5, 6]))

    def fit(self, hp, model, *args, callbacks, **options):
        note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self._note(hp.get("units"), epoch))
        return model.fit(*args, callbacks=[*callbacks, note], **options)

    def _note(self, units, epoch):
        killed = self.folder / f"killed.{units}"
        (self.folder / f"{units}.{os.getpid()}.{epoch}").touch()
        if units in self.always or (units in self.once and epoch == 1 and not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        wait_for(lambda: len({process for _, process, _ in notes(self.folder)}) >= self.together)
        time.sleep(self.seconds)


def notes(folder, units=None):
    """The epochs on note as (units, process, epoch)."""
    found = [path.name.split(".") for path in Path(folder).glob("[0-9].*.*")]
    return sorted(tuple(map(int, note)) for note in found if units is None or int(note[0]) == units)


def is_running(process):
    """True for a process that is neither gone nor a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=240):
    """Waits until the condition holds; gives what it gives."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return found
