"""What extends pqd registers itself under a name: stages, constraints, losses."""

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

C = TypeVar("C")


class Registry(dict[str, C]):
    """Registered classes by name, in the order of registration."""

    def register(self, kind: Any) -> Any:
        """Adds a class under its attribute `name`; use as a decorator.

        Raises:
            ValueError: another class has the name.
        """
        if self.setdefault(kind.name, kind) is not kind:
            raise ValueError(f"{kind.name} is registered already, as {self[kind.name]}")
        return kind


def load_all(package: ModuleType | str) -> None:
    """Imports every module of a package, so that what is in them registers itself."""
    parent = import_module(package) if isinstance(package, str) else package
    for module in pkgutil.iter_modules(parent.__path__):
        import_module(f"{parent.__name__}.{module.name}")
