"""Errors that say the rule, what was received and the way out."""


class TfoptError(ValueError):
    """Base of every error raised on purpose by tfopt.

    Args:
        rule: what holds, as one sentence.
        received: what was given instead.
        fix: what to do about it, as one sentence.

    Example:
        >>> error = TfoptError("`sparsity` lies in [0, 1).", received=1.5, fix="Pass a fraction such as 0.8.")
        >>> str(error)
        '`sparsity` lies in [0, 1). Received: 1.5. Pass a fraction such as 0.8.'
    """

    def __init__(self, rule: str, *, received: object = None, fix: str | None = None):
        parts = [rule]
        if received is not None:
            parts.append(f"Received: {received}.")
        if fix:
            parts.append(fix)
        super().__init__(" ".join(parts))


class InvalidArgumentError(TfoptError):
    """An argument has the wrong type, is out of range or names something unknown."""


class UnsupportedModelError(TfoptError):
    """The model is not one tfopt can read: unbuilt, no Keras model, or code that is no graph."""


class NothingToDoError(TfoptError):
    """The call would leave the model as it is."""


class NonFiniteError(TfoptError):
    """Weights or data hold NaN or infinity."""


class TargetNotMetError(TfoptError):
    """What was asked for is out of reach; the message says how near the attempts came."""


class FileError(TfoptError):
    """A file is missing, corrupt or cannot be written."""


class ExportError(TfoptError):
    """The converter failed, or the exported file does not compute what the model computes."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to quote in another; its class where it has none.

    Example:
        >>> first_line(ValueError("wrong shape.\\nlong trace"))
        'wrong shape'
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
