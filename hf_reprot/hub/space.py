"""A Space for a student: a page on which anyone puts an image before the student and its teacher."""

from __future__ import annotations

import importlib.resources
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, SpaceCardData, get_token
from huggingface_hub.errors import LocalTokenNotFoundError

from ..utils.files import write_whole
from ..utils.hub_ids import split_revision
from .errors import explain
from .foreign import REPO_ID, repo_of, revision_of, text_of
from .record import RECORD_FILE, RunRecord
from .retries import patiently

__all__ = ["push_space", "write_space"]

_FILES = ("README.md", "app.py", "requirements.txt", "space.json")
_NEEDS = ("torch", "torchvision", "transformers>=5.17", "timm>=1.0.20", "pillow")


def write_space(
    student: str | os.PathLike,
    folder: str | os.PathLike = "space",
    *,
    teacher: str | None = None,
    title: str | None = None,
) -> Path:
    """Writes the folder of a Space (Gradio): the student's best answers to an image beside its teacher's, and speeds.

    The page needs transformers and timm, not this package. It runs on this machine, too: `python app.py`, with gradio
    installed.

    Args:
        student: A repository ("name/student", "name/student@revision"), or the folder of a student; where its record
            names the repository that it was pushed to, the page loads it from there.
        folder: Where the page goes.
        teacher: Who stands beside it; None: the teachers from the Hub in the student's record. A teacher without a
            head for classes is left out by the page.
        title: Heading; None: the student's name.

    Returns:
        The folder.

    Raises:
        ValueError: neither an id nor a folder.

    Example (needs a student's folder):
        write_space("student", "space")
    """
    place, record = _student(student)
    settings = {
        "title": title or text_of(place["id"].rsplit("/", 1)[-1]) or "Student",
        "student": place,
        "teachers": [_place(teacher)] if teacher is not None else _teachers(record),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "space.json", json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    app = importlib.resources.files("hf_reprot") / "templates" / "space_app.py.jinja"
    write_whole(folder / "app.py", app.read_text("utf-8"))
    write_whole(folder / "requirements.txt", "\n".join(_NEEDS) + "\n")
    write_whole(folder / "README.md", _readme(settings, record))
    return folder


def push_space(
    folder: str | os.PathLike, space_id: str, *, private: bool | None = None, token: str | None = None
) -> str:
    """Pushes the folder that `write_space` wrote, in one commit, and makes the Space where it does not exist.

    Args:
        folder: The folder.
        space_id: "name/space".
        private: Whether only you see it; None: the account's default.
        token: Leave it out: it comes from the environment or the login.

    Returns:
        The address of the Space.

    Raises:
        FileNotFoundError: no folder of a Space.
        ValueError: a model of the page lies on this machine only.
        HubError: the Hub cannot be reached or refuses.
    """
    folder, token = Path(folder), token or get_token()
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{folder} is no folder of a Space: it has no {', '.join(missing)}")
    settings = json.loads((folder / "space.json").read_text("utf-8"))
    for place in (settings["student"], *settings["teachers"]):
        if not REPO_ID.fullmatch(place["id"]):
            raise ValueError(
                f"a Space loads its models from the Hub, and {Path(place['id']).name!r} lies on this machine: push it "
                "first (hf-reprot push), and make the Space from the repository"
            )
    if token is None:
        raise explain(LocalTokenNotFoundError(), space_id, token=None)
    api = HfApi(token=token, library_name="hf_reprot")
    kind: dict[str, Any] = {"repo_type": "space"}
    try:
        url = patiently(lambda: api.create_repo(space_id, space_sdk="gradio", private=private, exist_ok=True, **kind))
        patiently(
            lambda: api.upload_folder(
                repo_id=url.repo_id,
                folder_path=folder,
                allow_patterns=list(_FILES),
                commit_message="Upload Space",
                **kind,
            )
        )
    except Exception as error:
        raise explain(error, space_id, token=token) from None
    return str(url)


def _student(student: str | os.PathLike) -> tuple[dict[str, str], RunRecord | None]:
    """Where the page loads the student from, and what is known of it."""
    path = Path(student)
    if not path.is_dir():
        return _place(os.fspath(student)), None
    record = RunRecord.load(path) if (path / RECORD_FILE).is_file() else None
    repo = repo_of(record.repo_id) if record is not None else None
    return {"id": repo or str(path.resolve())}, record


def _place(source: str) -> dict[str, str]:
    """An id and a revision; the absolute path of a folder."""
    if Path(source).is_dir():
        return {"id": str(Path(source).resolve())}
    repo, revision = split_revision(source)
    if repo_of(repo) is None or "/" not in repo:
        raise ValueError(f'{source!r} is neither a folder nor a repository ("name/student", "name/student@revision")')
    return {"id": repo} | ({"revision": revision} if revision is not None else {})


def _teachers(record: RunRecord | None) -> list[dict[str, str]]:
    places = []
    for teacher in record.teachers if record is not None else ():
        if teacher.origin == "hub" and repo_of(teacher.name) is not None:
            revision = revision_of(teacher.revision)
            places.append({"id": teacher.name} | ({"revision": revision} if revision is not None else {}))
    return places


def _readme(settings: dict[str, Any], record: RunRecord | None) -> str:
    models = [place["id"] for place in (settings["student"], *settings["teachers"]) if REPO_ID.fullmatch(place["id"])]
    terms: dict[str, Any] = record.license.metadata() if record is not None and record.license is not None else {}
    data = SpaceCardData(
        title=settings["title"],
        sdk="gradio",
        app_file="app.py",
        models=models or None,
        tags=["hf_reprot", "image-classification"],
        **{name: value for name, value in terms.items() if name == "license"},
    )
    return f"---\n{data.to_yaml().strip()}\n---\n\nOne image, before a student and its teacher. Made by hf_reprot.\n"
