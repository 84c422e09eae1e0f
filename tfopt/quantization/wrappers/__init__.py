"""One file for each kind of layer with arithmetic of its own. Importing this package enters their wrapper classes."""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
