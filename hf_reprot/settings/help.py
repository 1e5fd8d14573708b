"""What `--help` prints of the settings, in the time that it takes to read a file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from rich.console import Console
from rich.table import Table

from .cache import CacheOptions
from .groups import Row, help_groups, rows
from .installed import UnreadableError
from .parsing import early_config
from .transfer import TransferSettings


def print_train_help(console: Console) -> None:
    """The settings of `hf-reprot train` with their defaults, those that matter first."""
    console.print("hf-reprot train [RECIPE.yaml] [--processes N] [--setting value ...]", markup=False, highlight=False)
    try:
        config = early_config()
    except UnreadableError:
        config = None
    for title, group in help_groups(config).items():
        console.print(_table(title, group))
    own = {f.name for f in fields(TransferSettings)}
    theirs = [f"--{f.name}" for f in fields(config) if f.name not in own] if config is not None else []
    console.print("\ntransformers.TrainingArguments", style="bold")
    console.print(
        ", ".join(theirs)
        or "--per_device_train_batch_size, --bf16, --push_to_hub, --resume_from_checkpoint, and all the others.",
        highlight=False,
    )


def print_cache_help(console: Console) -> None:
    """The settings of `hf-reprot cache`, with their defaults."""
    usage = "hf-reprot cache [RECIPE.yaml] --output_dir FOLDER [--setting value ...]"
    console.print(usage, markup=False, highlight=False)
    console.print(_table("The cache", rows(CacheOptions).values()))
    console.print(
        "\nand the settings of the training run that the cache is for, as `hf-reprot train --help` lists them:\n"
        "--teacher, --dataset, --student, --augmentation, --layer_pairs, --ot_positions, --seed, ...",
        highlight=False,
    )


def _table(title: str, group: Iterable[Row]) -> Table:
    table = Table("setting", "default", "what it is", title=f"\n{title}", title_justify="left", box=None)
    table.title_style = "bold"
    for row in group:
        default = "" if row.default is None or row.default == [] else str(row.default)
        table.add_row(f"--{row.name}", default, row.help)
    for column in table.columns[:2]:
        column.no_wrap = True
    return table
