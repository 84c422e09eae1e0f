"""Search for the best variant of a model under constraints: `tfopt.search(...)`, see `help(tfopt.search.tune.search)`.

The verb has the name of this package, which Python puts in its place once anything in here is imported. Whatever is
imported first, `tfopt.search` is the package, and calling it calls the verb.
"""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As `tfopt.search.tune.search`."""
        from tfopt.search.tune import search

        return search(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from tfopt.search.tune import search

        return inspect.signature(search)


sys.modules[__name__].__class__ = _Callable
