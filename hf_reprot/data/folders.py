"""Folders of images, and tables that hold images or say where they lie."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset_columns import is_image
from .hub_datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from .images import raster_endings

logger = logging.getLogger(__name__)

TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".parquet": "parquet"}
PATH_NAMES = (
    "file_name",
    "filename",
    "image",
    "image_path",
    "img",
    "img_path",
    "path",
    "file",
    "file_path",
    "filepath",
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_SPLITS |= {"dev": "validation", "test": "test", "testing": "test", "eval": "test", "evaluation": "test"}


def load_folder(folder: Path) -> DatasetDict | None:
    """The images of a folder, by its tables or by its subfolders; None where it holds neither.

    Raises:
        ValueError: images beside folders of classes, a table with paths that do not exist.
    """
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            data = load_from_disk(str(folder))
        except Exception as error:  # damaged; also what `save_to_disk` writes of a data set without a row
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(f"the saved data set {str(folder)!r} is empty or damaged ({reason})") from error
        return data if isinstance(data, DatasetDict) else DatasetDict({"train": data})
    found = load_tables(sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in TABLES))
    if found is not None:
        return found
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if names and all(name.lower() in _SPLITS for name in names):
        folders = {name: folder / name for name in names}
    else:
        folders = {"train": folder}
    files = {name: _image_files(path) for name, path in folders.items()}
    if not any(files.values()):
        return None
    described = {
        name: load_tables([p for p in path.glob("metadata.*") if p.suffix in TABLES]) for name, path in folders.items()
    }
    if names and any(described.values()):
        lacking = [name for name, table in described.items() if table is None and files[name]]
        if lacking:
            raise ValueError(f"{folder} has metadata for some splits, and none for {', '.join(lacking)}")
        return DatasetDict({_SPLITS[name.lower()]: table["train"] for name, table in described.items() if table})
    classes = sorted({label for found in files.values() for _, label in found if label is not None})
    splits: dict[str, list] = {}
    for name, found in files.items():
        splits.setdefault(_SPLITS[name.lower()], []).extend(found)
    return DatasetDict({name: _folder_split(found, classes, folder) for name, found in splits.items()})


def _image_files(folder: Path) -> list[tuple[Path, str | None]]:
    """(file, class) of every image: the class is the subfolder that it lies in, however deep."""
    endings = raster_endings()
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix.lower() in endings and path.is_file() and not any(part.startswith(".") for part in parts):
            found.append((path, parts[0] if len(parts) > 1 else None))
    return found


def _folder_split(found: Sequence[tuple[Path, str | None]], classes: Sequence[str], folder: Path) -> Dataset:
    """A split; one without any folder of a class has no labels, whatever the others have."""
    classes = classes if any(label is not None for _, label in found) else []
    outside = [path for path, label in found if label is None]
    if classes and outside:
        raise ValueError(
            f"{outside[0]} lies beside the folders of classes of {folder}: put it into one, or take it away"
        )
    columns: dict[str, list] = {"image": [str(path) for path, _ in found]}
    features = {"image": Image()}
    if classes:
        numbers: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
        columns["label"] = [numbers[label] for _, label in found]
        features["label"] = ClassLabel(names=list(classes))
    return Dataset.from_dict(columns, features=Features(features))


def load_tables(tables: Sequence[Path]) -> DatasetDict | None:
    """The data of tables with images or paths of images; None where no table has them.

    The split is in the name of a table (train.csv, test-00000-of-00002.parquet); of another name, it is "train".

    Raises:
        ValueError: paths of images that do not exist, or tables that cannot be read.
    """
    by_split: dict[str, list[Path]] = {}
    for table in tables:
        stem = re.sub(r"-\d{5}-of-\d{5}$", "", table.stem).lower()
        by_split.setdefault(_SPLITS.get(stem, "train"), []).append(table)
    found = {split: _with_images(_read(paths), paths[0]) for split, paths in by_split.items()}
    for split, data in found.items():
        if data is None:
            names = ", ".join(path.name for path in by_split[split])
            logger.warning("%s is not read: no column of it holds images or paths of images.", names)
    found = {split: data for split, data in found.items() if data is not None}
    return DatasetDict(found) if found else None


def _read(paths: Sequence[Path]) -> Dataset:
    options: dict[str, Any] = {"sep": "\t"} if paths[0].suffix.lower() == ".tsv" else {}
    try:
        kind = TABLES[paths[0].suffix.lower()]
        return load_dataset(kind, data_files=[str(path) for path in paths], split="train", **options)
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(f"{', '.join(path.name for path in paths)} cannot be read: {reason}") from error


def _with_images(data: Dataset, table: Path) -> Dataset | None:
    """A table with its images as a column of type Image."""
    typed = [name for name, f in data.features.items() if isinstance(f, Image)]
    if typed:
        return data
    encoded = [name for name, f in data.features.items() if is_image(f)]
    if encoded:
        return data.cast_column(encoded[0], Image())
    texts = {name.lower(): name for name, f in data.features.items() if isinstance(f, Value) and "string" in f.dtype}
    endings = raster_endings()
    for usual in PATH_NAMES:
        column = texts.get(usual)
        if column is None or not len(data) or Path(str(data[0][column])).suffix.lower() not in endings:
            continue
        places = [_place(table, path) for path in data[column]]
        features = Features(dict(data.features) | {column: Image()})
        rows = data.to_dict() | {column: places}
        found = Dataset.from_dict(rows, features=features)
        return found if column == "image" or "image" in found.features else found.rename_column(column, "image")
    return None


def _place(table: Path, path: str | None) -> str | None:
    """Where an image lies that a table names, by the folder of the table."""
    if path is None:
        return None
    place = (table.parent / path).resolve()
    if not Path(path).is_absolute() and not place.is_relative_to(table.parent.resolve()):
        raise ValueError(f"{table.name} names the image {path!r}, which lies outside of its folder")
    if not place.is_file():
        raise ValueError(f"{table.name} names the image {path!r}, which does not exist in {table.parent}")
    return str(place)
