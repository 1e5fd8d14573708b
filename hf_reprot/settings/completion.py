"""Completion of settings in a shell: `hf-reprot train --ot_<TAB>`, `--ot_method <TAB>`."""

from __future__ import annotations

from dataclasses import Field, fields
from enum import Enum
from typing import Any, get_args, get_type_hints

from typer.core import TyperCommand

from .augmentation import AUGMENTATIONS
from .cache import CacheOptions
from .installed import UnreadableError
from .names import CACHE_DTYPES
from .parsing import early_config
from .recipe import Recipe
from .transfer import TransferSettings

# Legal values that no field's type or metadata says.
_CHOICES = {"augmentation": AUGMENTATIONS, "dtype": CACHE_DTYPES}


class _SettingsCommand(TyperCommand):
    """A command whose flags are settings."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Settings that begin as typed, or the legal values of the one before; else what the shell completes: files."""
        item = _item_class()
        found = super().shell_complete(ctx, incomplete)
        last = ctx.args[-1].removeprefix("--") if ctx.args and ctx.args[-1].startswith("--") else None
        known = self._known()
        if incomplete.startswith("-"):
            asked = incomplete.replace("-", "_").lstrip("_")
            return [item(f"--{n}", help=h) for n, (h, _) in known.items() if n.startswith(asked)] + found
        values = known[last][1] if last in known else ()
        return [item(v) for v in values if v.startswith(incomplete)] or [item(incomplete, type="file")]

    def _known(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Help and legal values of every setting."""
        raise NotImplementedError


class TrainCommand(_SettingsCommand):
    """`hf-reprot train`."""

    def _known(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return _settings(Recipe) | _run_settings() | {"processes": ("Number of processes.", ())}


class CacheCommand(_SettingsCommand):
    """`hf-reprot cache`."""

    def _known(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return _settings(CacheOptions) | _settings(Recipe) | _run_settings()


def _item_class() -> Any:
    """The class of completions: typer has a copy of the package click of its own, or uses click, by its version."""
    try:
        from typer._click.shell_completion import CompletionItem
    except ImportError:
        from click.shell_completion import CompletionItem  # type: ignore[assignment]
    return CompletionItem


def _run_settings() -> dict[str, tuple[str, tuple[str, ...]]]:
    try:
        return _settings(early_config())
    except UnreadableError:
        return _settings(TransferSettings)


def _settings(kind: type) -> dict[str, tuple[str, tuple[str, ...]]]:
    hints = get_type_hints(kind)
    return {f.name: (f.metadata.get("help", ""), _values(f, hints[f.name])) for f in fields(kind)}


def _values(field: Field, hint: Any) -> tuple[str, ...]:
    if field.name in _CHOICES or "choices" in field.metadata:
        return tuple(map(str, field.metadata.get("choices") or _CHOICES[field.name]))
    options = get_args(hint) or (hint,)
    if bool in options:
        return ("true", "false")
    enums = (option for option in options if isinstance(option, type) and issubclass(option, Enum))
    return tuple(str(member.value) for option in enums for member in option)
