"""A student's folder to the Hub, in one commit: a reader finds the student whole, as it was or as it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import LocalTokenNotFoundError

from .card import CARD_FILE, render_card, write_card
from .contents import Content, checkpoint_contents, replaced, student_contents
from .errors import HubError, explain
from .record import RECORD_FILE, RunRecord
from .retries import patiently, status_of

logger = logging.getLogger(__name__)

_ATTEMPTS = 3
_CLIENT = "hf_reprot"


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload student",
    parent_commit: str | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_path: str = "last-checkpoint",
    token: str | None = None,
) -> CommitInfo:
    """Pushes a student: weights, settings, card and pictures in one commit.

    The repository is made where it does not exist. Weights that an earlier push left in another layout are deleted by
    the same commit. Everything is checked before anything is sent; a push that breaks off leaves the repository as it
    was, and can be repeated. Where the Hub has too many requests or is in trouble, the push waits and tries again, for
    five minutes at most; an answer that got lost after the commit is found out.

    Args:
        folder: A folder that `OTTransferTrainer` saved, or any folder of a student with a card.
        repo_id: "name/student" or "organisation/student"; without a slash, below the token's user.
        private: Whether only you (or the organisation) see the repository; None: the account's default.
        revision: Branch to push to (made where it does not exist); None: main.
        commit_message: Title of the commit.
        parent_commit: Refuse the push where the branch does not point to this commit.
        checkpoint: A checkpoint's folder, with the optimiser's state, that goes up in the same commit.
        checkpoint_path: Where it goes in the repository.
        token: For `Trainer`, which has an argument for it. Leave it out: it comes from the environment or the login.

    Returns:
        The commit; the latest one where the repository holds the same files already.

    Raises:
        FileNotFoundError, ValueError: a folder that must not be pushed: no weights or card, pickles, another model's
            weights, a token in a file.
        HubError: the Hub cannot be reached or refuses: no token, a token that may only read, a public repository where
            `private` was asked for, a repository that has moved on.
    """
    folder = Path(folder)
    token = token or get_token()
    student_contents(folder)  # refuses before anything is made or written
    if not (folder / RECORD_FILE).is_file() and not (folder / CARD_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {CARD_FILE}: a student goes to the Hub with a card")
    api = HfApi(token=token, library_name=_CLIENT)
    repo_id, empty = _make_repository(api, repo_id, private=private, revision=revision, token=token)
    name_repository(folder, repo_id)
    contents = student_contents(folder)
    if checkpoint is not None:
        contents += checkpoint_contents(Path(checkpoint), checkpoint_path)
    try:
        return _commit(
            api,
            repo_id,
            contents,
            revision=revision,
            commit_message=commit_message,
            parent_commit=parent_commit,
            checkpoint_path=checkpoint_path if checkpoint is not None else None,
        )
    except Exception as error:
        found = explain(error, repo_id, token=token)
        if empty:
            left = f"{repo_id} is there and still empty: push again, or delete it in its settings"
            found = HubError(f"{found}. {left}", found.status)
        raise found from None


def make_repository(
    repo_id: str, *, private: bool | None = None, revision: str | None = None, token: str | None = None
) -> str:
    """Makes a repository for a student, and a branch in it, where they do not exist.

    Returns:
        The whole id.

    Raises:
        HubError: the Hub cannot be reached or refuses; or the repository is public and `private` is True.
    """
    token = token or get_token()
    return _make_repository(
        HfApi(token=token, library_name=_CLIENT), repo_id, private=private, revision=revision, token=token
    )[0]


def _make_repository(
    api: HfApi, repo_id: str, *, private: bool | None, revision: str | None, token: str | None
) -> tuple[str, bool]:
    """The whole id, and whether there is nothing in the repository yet."""
    if token is None:
        raise explain(LocalTokenNotFoundError(), repo_id, token=None)
    try:
        repo_id = patiently(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        seen = patiently(lambda: api.model_info(repo_id))
        if private and not seen.private:
            raise HubError(f"{repo_id} exists and is public, but private=True was asked for: nothing was pushed")
        if revision is not None and not revision.startswith("refs/"):
            patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    except HubError:
        raise
    except Exception as error:
        raise explain(error, repo_id, token=token) from None
    return repo_id, all(file.rfilename == ".gitattributes" for file in seen.siblings or ())


def name_repository(folder: str | os.PathLike, repo_id: str) -> None:
    """Lets record and card of a folder name the repository, so that the card's examples can be copied and run.

    A card that someone has edited is left as it is; one that is missing is written.
    """
    folder = Path(folder)
    if not (folder / RECORD_FILE).is_file():
        return
    record = RunRecord.load(folder)
    card = folder / CARD_FILE
    ours = not card.is_file() or card.read_text(encoding="utf-8") == render_card(record, folder)
    if record.repo_id != repo_id:
        record.repo_id = repo_id
        record.save(folder)
    if ours:
        write_card(record, folder)
    else:
        logger.info("%s was edited by hand and is pushed as it is", card)


def _commit(
    api: HfApi,
    repo_id: str,
    contents: Iterable[Content],
    *,
    revision: str | None,
    commit_message: str,
    parent_commit: str | None,
    checkpoint_path: str | None,
) -> CommitInfo:
    contents = list(contents)

    def commit() -> CommitInfo:
        # The commit rests on what was seen: were another push to come between, unchanged files of the one would stand
        # beside changed files of the other. Seen anew by each try, a commit whose answer got lost is there already.
        seen = api.model_info(repo_id, revision=revision)
        present = [sibling.rfilename for sibling in seen.siblings or ()]
        gone = replaced(present, (content.path_in_repo for content in contents), checkpoint_path)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(content.path_in_repo, _readable(content)) for content in contents
        ]
        operations += [CommitOperationDelete(name) for name in gone]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            revision=revision,
            parent_commit=parent_commit or seen.sha,
        )

    for attempt in range(_ATTEMPTS):
        try:
            return patiently(commit)
        except Exception as error:
            if status_of(error) != 412 or parent_commit is not None or attempt == _ATTEMPTS - 1:
                raise
            logger.info("%s has changed meanwhile: pushing on top of the change", repo_id)
    raise AssertionError("unreachable")


def _readable(content: Content) -> str | bytes:
    return content.source if isinstance(content.source, bytes) else str(content.source)
