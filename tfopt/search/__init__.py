"""Search for the best variant of a model under constraints. `tfopt.search(...)` is the verb `tfopt.search.tune.search`.

The verb has the name of this package, which Python puts in its place once anything in here is imported: the package can
be called too.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from tfopt.search.tune import search

        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
