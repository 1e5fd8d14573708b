"""Repositories on disk: blobs by their hash, commits as immutable snapshots, refs that point at commits.

blobs/ab/abcd...                          content, named by its SHA-256
repos/models/ada/student/repo.json        visibility, branches, tags, pull requests, large files it has received
repos/models/ada/student/commits/ID.json  one snapshot: every path with its blob
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

KINDS = ("models", "datasets", "spaces")
MAIN = "main"

_LFS_SUFFIXES = (
    "7z arrow avro bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth "
    "rar safetensors tar.* tar tflite tgz wasm xz zip zst"
)
LFS_ATTRIBUTES = "filter=lfs diff=lfs merge=lfs -text"
# The file that the Hub puts into every new repository.
GITATTRIBUTES = "".join(
    f"{pattern} {LFS_ATTRIBUTES}\n"
    for pattern in [*(f"*.{suffix}" for suffix in _LFS_SUFFIXES.split()), "saved_model/**/*", "*tfevents*"]
)


def now() -> str:
    """The time in the form that the Hub writes: 2024-01-31T12:00:00.000Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def git_blob_id(data: bytes) -> str:
    """The SHA-1 that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """The small file that git keeps in place of a large one."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Entry:
    """One file of a snapshot. `oid` is git's id of the blob: of the content, or of the pointer where `lfs`."""

    sha256: str
    size: int
    oid: str
    lfs: bool = False


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files, with its parent. Never changed once written."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """A repository: where its refs point. `received` holds the hashes of the large files uploaded to it."""

    kind: str
    id: str
    private: bool
    created: str
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[str, dict] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.id.split("/")[0]

    def ref(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a pull request's ref points at."""
        if revision.startswith("refs/pr/"):
            pull = self.pulls.get(revision.removeprefix("refs/pr/"))
            return pull["head"] if pull else None
        branch = revision.removeprefix("refs/heads/")
        return self.branches.get(branch) or self.tags.get(revision.removeprefix("refs/tags/"))

    def move(self, ref: str, commit: str) -> None:
        """Point a branch or a pull request's ref at a commit."""
        if ref.startswith("refs/pr/"):
            self.pulls[ref.removeprefix("refs/pr/")]["head"] = commit
        else:
            self.branches[ref.removeprefix("refs/heads/")] = commit


class Store:
    """All repositories under one directory. Every change happens under `lock` and is on disk when it returns."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.lock = threading.RLock()
        self._repos: dict[tuple[str, str], Repo] = {}
        self._commits: dict[tuple[str, str], dict[str, Commit]] = {}
        for name in ("blobs", "repos", "incoming"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((self.root / "repos").glob("*/*/*/repo.json")):
            repo = Repo(**json.loads(path.read_text()))
            self._repos[repo.kind, repo.id] = repo
            self._commits[repo.kind, repo.id] = {
                file.stem: _commit_from_json(json.loads(file.read_text()))
                for file in sorted((path.parent / "commits").glob("*.json"))
            }

    # blobs

    def blob(self, sha256: str) -> Path:
        """Where the content with this hash lies, or would lie."""
        return self.root / "blobs" / sha256[:2] / sha256

    def incoming(self) -> Path:
        """A new empty file for content that is being received."""
        handle, name = tempfile.mkstemp(dir=self.root / "incoming")
        os.close(handle)
        return Path(name)

    def adopt(self, file: Path, sha256: str) -> None:
        """Move a received file to its place; content that is there already is kept."""
        target = self.blob(sha256)
        target.parent.mkdir(exist_ok=True)
        os.replace(file, target)

    def put(self, data: bytes) -> Entry:
        """Keep the content of a regular file."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.blob(sha256).exists():
            file = self.incoming()
            file.write_bytes(data)
            self.adopt(file, sha256)
        return Entry(sha256, len(data), git_blob_id(data))

    def large(self, sha256: str) -> Entry:
        """The entry of a large file whose content is here."""
        size = self.blob(sha256).stat().st_size
        return Entry(sha256, size, git_blob_id(lfs_pointer(sha256, size)), lfs=True)

    def read(self, entry: Entry) -> bytes:
        """A file's content."""
        return self.blob(entry.sha256).read_bytes()

    # repositories

    def create(self, kind: str, repo_id: str, author: str, private: bool = False) -> Repo:
        """A new repository with its first commit, which holds `.gitattributes`."""
        with self.lock:
            repo = Repo(kind, repo_id, private, now())
            self._repos[kind, repo_id] = repo
            self._commits[kind, repo_id] = {}
            self.commit(repo, MAIN, {".gitattributes": self.put(GITATTRIBUTES.encode())}, "initial commit", "", author)
            return repo

    def get(self, kind: str, repo_id: str) -> Repo | None:
        """The repository, if there is one."""
        return self._repos.get((kind, repo_id))

    def repos(self, kind: str) -> list[Repo]:
        """All repositories of a kind, by name."""
        with self.lock:
            return [repo for (its_kind, _), repo in sorted(self._repos.items()) if its_kind == kind]

    def delete(self, repo: Repo) -> None:
        """Remove a repository with its history; blobs stay, since others may share them."""
        with self.lock:
            del self._repos[repo.kind, repo.id], self._commits[repo.kind, repo.id]
            shutil.rmtree(self._folder(repo))

    def save(self, repo: Repo) -> None:
        """Write a repository's refs to disk."""
        with self.lock:
            _write_json(self._folder(repo) / "repo.json", asdict(repo))

    # commits

    def commit(
        self,
        repo: Repo,
        ref: str,
        files: dict[str, Entry],
        title: str,
        message: str,
        author: str,
        parent: str | None = None,
    ) -> Commit:
        """Write a snapshot and point `ref` at it. `parent` defaults to where `ref` pointed."""
        with self.lock:
            parent = parent or repo.ref(ref)
            tree = {path: files[path] for path in sorted(files)}
            # The time to the nanosecond keeps two equal snapshots apart.
            seed = repr((repo.id, parent, title, message, author, time.time_ns(), tree))
            commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), parent, title, message, author, now(), tree)
            self._commits[repo.kind, repo.id][commit.id] = commit
            _write_json(self._folder(repo) / "commits" / f"{commit.id}.json", asdict(commit))
            repo.move(ref, commit.id)
            self.save(repo)
            return commit

    def find(self, repo: Repo, revision: str) -> Commit | None:
        """The commit behind a branch, a tag, `refs/...`, or an id of which at least 7 digits are given."""
        commits = self._commits[repo.kind, repo.id]
        target = repo.ref(revision)
        if target is None and re.fullmatch(r"[0-9a-f]{7,40}", revision):
            target = next((known for known in list(commits) if known.startswith(revision)), None)
        return commits.get(target) if target else None

    def history(self, repo: Repo, commit: Commit | None) -> Iterator[Commit]:
        """A commit and its ancestors, newest first."""
        commits = self._commits[repo.kind, repo.id]
        while commit is not None:
            yield commit
            commit = commits.get(commit.parent) if commit.parent else None

    @staticmethod
    def folder_id(commit: Commit, path: str) -> str:
        """An id that changes whenever a file in the folder does; git's tree id, but not computed as git does."""
        inside = [(name, entry.oid) for name, entry in commit.files.items() if name.startswith(f"{path}/")]
        return hashlib.sha1(repr(inside).encode()).hexdigest()

    def _folder(self, repo: Repo) -> Path:
        return self.root / "repos" / repo.kind / repo.id


def _commit_from_json(data: dict) -> Commit:
    return Commit(**{**data, "files": {path: Entry(**entry) for path, entry in data["files"].items()}})


def _write_json(path: Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data))
    os.replace(temporary, path)
