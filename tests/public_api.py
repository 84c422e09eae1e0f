"""The public names of tfopt with their arguments, as `public_api.json` lists them.

`python tests/public_api.py` writes the list anew, after names or arguments were changed on purpose.
"""

import inspect
import json
from pathlib import Path

import tfopt

LIST = Path(__file__).resolve().parent / "public_api.json"
PACKAGES = ("tfopt", "tfopt.distillation", "tfopt.fusion", "tfopt.training")


class _Named:
    """A default whose own repr is no text to compare: one with an address in memory."""

    def __init__(self, value):
        self.name = getattr(value, "__qualname__", type(value).__qualname__)

    def __repr__(self):
        return f"<{self.name}>"


def signature(function):
    """The parameters of a function as Python writes them, with defaults and without annotations."""
    given = inspect.signature(function)
    parameters = [
        parameter.replace(
            annotation=parameter.empty,
            default=_Named(parameter.default) if " at 0x" in repr(parameter.default) else parameter.default,
        )
        for parameter in given.parameters.values()
    ]
    return str(given.replace(parameters=parameters, return_annotation=given.empty))


def entry(value):
    """What is recorded of a public name; of a class what its own package gives it, not what it has from Keras.

    The verb `search` may be a package that can be called: it counts as the function that it stands for.
    """
    if not isinstance(value, type):
        return {"kind": "function", "signature": signature(value)}
    package = value.__module__.split(".")[0]
    members = {}
    for cls in reversed(value.__mro__):
        if cls.__module__.split(".")[0] == package:
            members |= {name: _described(member) for name, member in vars(cls).items() if _is_public(name)}
            if "__new__" in vars(cls):  # of a tuple with names
                members["__new__"] = signature(cls)
    return {"kind": "class", "members": {name: text for name, text in sorted(members.items()) if text}}


def _is_public(name):
    return not name.startswith("_") or name in ("__init__", "__call__")


def _described(member):
    """A method by its parameters; None for what is no method or property."""
    if isinstance(member, property):
        return "property"
    if isinstance(member, classmethod):
        return f"classmethod {signature(member.__func__)}"
    return signature(member) if inspect.isfunction(member) else None


def names_of(package):
    """The names that a package says are public, else those that are not its modules."""
    known = [name for name, value in vars(package).items() if name[0] != "_" and not inspect.ismodule(value)]
    names = getattr(package, "__all__", known)
    return [name for name in names if not inspect.ismodule(getattr(package, name))]


def public_api():
    """`{"tfopt.prune": entry, ...}` of all public names."""
    packages = {path: tfopt if path == "tfopt" else getattr(tfopt, path.split(".")[1]) for path in PACKAGES}
    found = {
        f"{path}.{name}": getattr(package, name) for path, package in packages.items() for name in names_of(package)
    }
    return {name: entry(value) for name, value in sorted(found.items())}


if __name__ == "__main__":
    LIST.write_text(json.dumps(public_api(), indent=1) + "\n")
