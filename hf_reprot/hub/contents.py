"""What of a student's folder goes to the Hub: weights as safetensors, settings, card, pictures; nothing that runs, no
other model's weights, no token."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ..utils.safetensors_only import check_file, check_folder, check_inside
from .eval_results import EVAL_RESULT
from .privacy import holds_token, public
from .record import RECORD_FILE, RunRecord

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
_OWN_WEIGHTS = re.compile(r"(adapter_)?model(\.[\w-]+)?(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_KINDS = (".safetensors", ".json", ".md", ".txt", ".model", ".jinja", ".png", ".jpg", ".svg", ".yaml", ".yml", ".py")
_BARE_NAMES = ("LICENSE", "NOTICE", "README", ".gitattributes")
# What a Trainer leaves beside a student and means for itself. Its pickled arguments can run code when read; logs for
# TensorBoard name the machine.
_LEFT_BEHIND = ("training_args.bin", "checkpoint-*", "_*", ".*", "runs", "logs", "wandb", "*.tfevents.*", "__pycache__")
_FOR_RESUMING = (
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "transfer_state*.safetensors",
    "trainer_state.json",
)
_TEXTS = (".json", ".md", ".txt", ".jinja", ".yaml", ".yml", ".py", ".svg", "")
# Settings whose values may be paths on this machine.
_PATHS_IN = ("config.json", "adapter_config.json", "trainer_state.json")
_PATH_FIELDS = ("_name_or_path", "base_model_name_or_path", "best_model_checkpoint")
_LONGEST_TEXT = 20_000_000


@dataclass
class Content:
    """One file for the Hub: where it goes, and where it comes from (a path, or bytes that differ from the file's)."""

    path_in_repo: str
    source: Path | bytes


def student_contents(folder: str | Path) -> list[Content]:
    """The files of a student's folder that go to the Hub, checked.

    Left behind: pickled arguments, checkpoints and what only resuming needs, logs, hidden files, names that start with
    an underscore, and (with a warning) kinds of files that no repository of a model needs. An ONNX file goes along
    where the record says that it was exported from the student, as it lies there.

    Raises:
        FileNotFoundError: no such folder, or no weights or no config in it.
        ValueError: pickles, damaged or missing pieces of weights, weights that are not the student's, a link out of the
            folder, or a token in a file. Nothing may be pushed then.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = list(_walk(folder, (*_LEFT_BEHIND, *_FOR_RESUMING)))
    _check_pickles(folder, files)
    exports = _exports(folder)
    left = [name for name in files if not _is_known(name) and name not in exports]
    if left:
        logger.warning("Not pushed, because a model's repository has no use for them: %s", _some(left))
    files = [name for name in files if name not in left]
    _check_weights(folder, files)
    return _contents(folder, files)


def checkpoint_contents(folder: str | Path, path_in_repo: str) -> list[Content]:
    """All files of a checkpoint but pickled arguments and cards, to resume from; they go below `path_in_repo`.

    Raises:
        ValueError: a token in a file, weights that are damaged or no safetensors, or a link out of the folder.
    """
    folder = Path(folder)
    check_folder(folder, deep=True)
    contents = _contents(folder, _walk(folder, (*_LEFT_BEHIND, "README.md")))
    return [Content(f"{path_in_repo}/{content.path_in_repo}", content.source) for content in contents]


def replaced(present: Iterable[str], sent: Iterable[str], checkpoint: str | None = None) -> list[str]:
    """Files on the Hub that a push makes wrong: weights of another layout, pictures of an earlier card, pickled
    arguments, and, where a checkpoint is pushed, what is left of the one before.

    Args:
        present: Paths in the repository.
        sent: Paths that the push writes.
        checkpoint: Folder of the checkpoint in the repository.
    """
    sent = set(sent)

    def wrong(name: str) -> bool:
        if checkpoint is not None and name.startswith(checkpoint + "/"):
            return True
        if "/" not in name:
            pickled = name == "training_args.bin" or fnmatch(name, "pytorch_model*.bin*")
            return bool(_OWN_WEIGHTS.fullmatch(name)) or pickled
        return bool(re.fullmatch(r"images/(transport_plan_\d+|training_curves|teacher_and_student)\.png", name))

    return sorted(name for name in present if name not in sent and wrong(name))


def _walk(folder: Path, left_out: Iterable[str]) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not _fits(name, left_out):
            yield name


def _fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether any part of a path fits a pattern."""
    if name == ".gitattributes" or EVAL_RESULT.fullmatch(name):
        return False
    return any(fnmatch(part, pattern) for part in PurePosixPath(name).parts for pattern in patterns)


def _is_known(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in _KINDS or path.name in _BARE_NAMES or path.stem in ("LICENSE", "NOTICE")


def _exports(folder: Path) -> set[str]:
    """The exports of the student that the record of its run knows: of these very weights, and compared with them."""
    if not (folder / RECORD_FILE).is_file():
        return set()
    facts = [f for f in RunRecord.load(folder).exports if re.fullmatch(r"onnx/[\w-]+\.onnx", f.file)]
    there = [f for f in facts if (folder / f.file).is_file()]
    return {f.file for f in there if hashlib.sha256((folder / f.file).read_bytes()).hexdigest() == f.sha256}


def _check_pickles(folder: Path, files: Iterable[str]) -> None:
    pickles = [
        name for name in files if PurePosixPath(name).suffix.lower() in _PICKLES or _starts_like_a_pickle(folder / name)
    ]
    if pickles:
        raise ValueError(
            f"{folder} holds {_some(pickles)}, which can run code on the machine of whoever loads it: only safetensors "
            "are pushed. Save it as safetensors, or move it out of the folder"
        )


def _starts_like_a_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(2)
    return start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def _check_weights(folder: Path, files: list[str]) -> None:
    weights = [name for name in files if name.endswith(".safetensors")]
    foreign = [name for name in weights if not _OWN_WEIGHTS.fullmatch(PurePosixPath(name).name)]
    nested = [n for n in weights if "/" in n and not (folder / n).with_name("adapter_config.json").is_file()]
    if foreign or nested:
        raise ValueError(
            f"{folder} holds weights that are not the student's: {_some(sorted({*foreign, *nested}))}. Only the "
            "student is pushed, never its teacher: move them out of the folder"
        )
    main = [name for name in weights if "/" not in name]
    if not main:
        raise FileNotFoundError(f"{folder} holds no weights ({' or '.join(WEIGHTS)}): there is no student to push")
    settings = "adapter_config.json" if main[0].startswith("adapter_") else "config.json"
    if settings not in files:
        raise FileNotFoundError(f"{folder} holds weights but no {settings}: nobody could load them")
    check_folder(folder, only=[folder / name for name in files])
    for name in weights:
        if any(key.split(".")[0] in ("teacher", "teachers", "teacher_model") for key in check_file(folder / name)):
            raise ValueError(f"{folder / name} holds weights of a teacher inside the student: they are not pushed")


def _contents(folder: Path, files: Iterable[str]) -> list[Content]:
    contents = []
    for name in files:
        check_inside(folder / name, folder)
        source: Path | bytes = folder / name
        if PurePosixPath(name).name in _PATHS_IN:
            source = _without_paths(folder / name)
        if PurePosixPath(name).suffix in _TEXTS:
            _check_tokens(folder / name)
        contents.append(Content(name, source))
    return contents


def _check_tokens(path: Path) -> None:
    if path.stat().st_size > _LONGEST_TEXT:
        return
    if holds_token(path.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(f"{path} holds a token of the Hub: nothing was pushed. Take it out, and revoke the token")


def _without_paths(path: Path) -> Path | bytes:
    """The file itself, or, where it names a place on this machine, its text with the last part of the place only."""
    settings = _json(path)
    changed = {name: public(settings[name]) for name in _PATH_FIELDS if isinstance(settings.get(name), str)}
    if all(settings[name] == value for name, value in changed.items()):
        return path
    return (json.dumps(settings | changed, indent=2) + "\n").encode()


def _json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
