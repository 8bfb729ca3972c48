"""Sources and sinks, one module each; names are imported when they are first used.

`penstock.connectors.files(...)`, `.mqtt(...)`, … : the public names are the keys of `registry.CONNECTORS`. A module is
never called like a public name, so that importing it cannot hide the constructor.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from penstock.connectors.registry import CONNECTORS

__all__ = [  # noqa: PLE0604 - the names are the registry's
    *CONNECTORS
]


def __getattr__(name: str) -> Any:
    module = CONNECTORS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    constructor = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = constructor
    return constructor


def __dir__() -> list[str]:
    return sorted({*globals(), *CONNECTORS})
