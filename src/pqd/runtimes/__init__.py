"""The runtimes a network can be measured in: one file each, found by being here."""

from importlib import import_module
from pkgutil import iter_modules

from pqd.runtimes.base import (
    RUNTIMES,
    Array,
    Runtime,
    Session,
    Step,
    available,
    get,
    register,
    usable,
)

REFERENCE = "onnxruntime"  # an accuracy without a runtime's name is the one in this

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "REFERENCE",
    "RUNTIMES",
    "Array",
    "Runtime",
    "Session",
    "Step",
    "available",
    "get",
    "register",
    "usable",
]
