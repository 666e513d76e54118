"""Late imports of optional packages; their absence names the extra to install."""

from __future__ import annotations

import importlib
from types import ModuleType

from tuneloop.errors import MachineError


def need(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or raise TL-MACHINE-EXTRA that names the extra which brings it.

    >>> need("json", extra="serve").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MachineError("TL-MACHINE-EXTRA", module=module, extra=extra, error=str(error)) from error
