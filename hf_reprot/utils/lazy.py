"""Names and modules that are imported when they are first used: what starts must not wait for what it may not need."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .moved import moved_name


def lazy_names(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names live in its modules; names that have moved work, too.

    Args:
        package: The package's `__name__`.
        homes: Module, below the package, of each name.
    """

    def get(name: str) -> Any:
        if name not in homes:
            return moved_name(package, name)
        return getattr(importlib.import_module(f".{homes[name]}", package), name)

    return get, lambda: sorted(homes)


def late_module(name: str) -> Any:
    """A module that is imported when something in it is first used.

    Example:
        >>> late_module("math").sqrt(9)
        3.0
    """
    return _LateModule(name)


class _LateModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)
