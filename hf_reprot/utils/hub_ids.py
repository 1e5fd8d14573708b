"""How a repository of the Hub is written, `org/name@revision`: taken apart in this one place."""

from __future__ import annotations

from pathlib import Path

PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")  # timm's ways to write a source


def without_prefix(source: str) -> str:
    """A source without the prefix that timm writes before it."""
    for prefix in PREFIXES:
        source = source.removeprefix(prefix)
    return source


def split_revision(
    source: str, revision: str | None = None, *, title: str = "the repository", setting: str = "revision"
) -> tuple[str, str | None]:
    """The repository and the revision that a source names; a folder on this machine is left whole.

    Args:
        source: "org/name", "org/name@revision", either behind one of timm's prefixes, or a folder.
        revision: A revision that was given beside it.
        title: What a message calls the source.
        setting: What a message calls `revision`.

    Raises:
        ValueError: two different revisions.

    Example:
        >>> split_revision("org/name@v1.0")
        ('org/name', 'v1.0')
        >>> split_revision("hf-hub:org/name")
        ('org/name', None)
    """
    if Path(source).expanduser().exists():
        return source, revision or None
    repo, _, named = without_prefix(source).partition("@")
    if named and revision and named != revision:
        raise ValueError(f"{title} {source!r} names a revision, and {setting} another one ({revision!r}): give one")
    return repo, named or revision or None
