"""What the site takes from the code while it is built: every setting, and every command with its options.

A page asks with a comment on a line of its own: `<!-- settings -->`, `<!-- recipe settings -->`,
`<!-- cache settings -->`, `<!-- commands -->`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with each page: puts tables in the place of the comments."""
    for comment, table in TABLES.items():
        if comment in markdown:
            markdown = markdown.replace(comment, table())
    return markdown


def settings_tables() -> str:
    """Every setting that `OTTransferConfig` adds to `TrainingArguments`, in the groups of its docstring."""
    from hf_reprot import OTTransferConfig

    members = {f.name: f for f in dataclasses.fields(OTTransferConfig)}
    parts = []
    for title, names in setting_groups().items():
        parts.append(f"## {title}\n\n{_field_table([members[name] for name in names])}")
    return "\n\n".join(parts)


def setting_groups() -> dict[str, list[str]]:
    """The settings by the headings of `TransferSettings`' docstring; those that it does not name come last."""
    from hf_reprot import OTTransferConfig
    from hf_reprot.settings.groups import transfer_groups

    own = OTTransferConfig.transfer_fields()
    return {title: [name for name in names if name in own] for title, names in transfer_groups().items()}


def recipe_table() -> str:
    """What a recipe says beside the settings of the trainer."""
    from hf_reprot.settings.recipe import Recipe

    return _field_table(dataclasses.fields(Recipe), flags=True)


def cache_table() -> str:
    """What `hf-reprot cache` takes beside the recipe."""
    from hf_reprot.settings.cache import CacheOptions

    return _field_table(dataclasses.fields(CacheOptions), flags=True)


def command_sections() -> str:
    """Every command of `hf-reprot`: what it does, its arguments and its options."""
    import typer

    from hf_reprot.cli import app

    group: Any = typer.main.get_command(app)
    parts = []
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        rows = []
        for parameter in command.params:
            if parameter.name == "help" or getattr(parameter, "hidden", False):
                continue
            shown = parameter.name.upper() if parameter.param_type_name == "argument" else ", ".join(parameter.opts)
            default = "" if parameter.required or parameter.default is None else f"`{parameter.default}`"
            rows.append((f"`{shown}`", default, parameter.help or ""))
        about = _plain(command.help or "")
        parts.append(f"## hf-reprot {name}\n\n{about}" + (f"\n\n{_table(rows)}" if rows else ""))
    return "\n\n".join(parts)


def _field_table(members: Sequence[Any], flags: bool = False) -> str:
    rows = []
    for f in members:
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        shown = f"`--{f.name}`" if flags else f"`{f.name}`"
        rows.append((shown, "" if default is None else f"`{default}`", f.metadata.get("help", "")))
    return _table(rows)


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = ["| name | default | what it is |", "|---|---|---|"]
    for row in rows:
        lines.append(f"| {row[0]} | {row[1]} | {_plain(row[2])} |")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """One line of text in which Markdown finds neither links nor columns."""
    return re.sub(r"([\[\]|<])", r"\\\1", " ".join(text.split()))


TABLES = {
    "<!-- settings -->": settings_tables,
    "<!-- recipe settings -->": recipe_table,
    "<!-- cache settings -->": cache_table,
    "<!-- commands -->": command_sections,
}
