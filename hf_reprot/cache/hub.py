"""A cache as a data set repository on the Hub: pushed whole in one commit, fetched at one commit."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCardData, HfApi, get_token
from huggingface_hub import snapshot_download as download
from huggingface_hub.errors import LocalTokenNotFoundError

from ..hub.errors import HubError, explain
from ..hub.licenses import License
from ..hub.markdown import cell, data_link, model_link
from ..hub.privacy import redact
from ..utils.hub_ids import split_revision
from .manifest import MANIFEST, SETTINGS, CacheError, Manifest
from .shards import Shard

CARD = "README.md"
_CLIENT = "hf_reprot"
_SHARDS = re.compile(r"view\d{4}-row\d{10}\.safetensors")


def push(folder: Path, manifest: Manifest, repo_id: str, *, private: bool = True, revision: str | None = None) -> str:
    """Pushes a cache, with a card, in one commit; shards of an earlier cache there are deleted by the same commit.

    Args:
        folder: Where the cache lies. Every file is compared with its checksum first.
        manifest: What is in it.
        repo_id: "name/features" or "organisation/features".
        private: Whether only you (or the organisation) see it. It is the default: features can tell what an image
            shows, nearly as well as the image.
        revision: Branch to push to (made where it does not exist); None: main.

    Returns:
        The commit.

    Raises:
        CacheError: a file is not what the manifest says.
        HubError: the Hub cannot be reached or refuses; or the repository is public and `private` is True.
    """
    for facts in manifest.shards:
        Shard(folder / facts.file, facts, manifest.settings).verify()
    token = get_token()
    if token is None:
        raise explain(LocalTokenNotFoundError(), repo_id, token=None)
    api = HfApi(token=token, library_name=_CLIENT)
    try:
        repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, repo_type="dataset", branch=revision, exist_ok=True)
        seen = api.dataset_info(repo_id, revision=revision)
        if private and not seen.private:
            raise HubError(f"{repo_id} exists and is public, but private=True was asked for: nothing was pushed")
        names = [MANIFEST, SETTINGS, *(facts.file for facts in manifest.shards)]
        operations = [CommitOperationAdd(name, str(folder / name)) for name in names]
        operations.append(CommitOperationAdd(CARD, card(manifest, repo_id).encode()))
        present = [sibling.rfilename for sibling in seen.siblings or ()]
        gone = [name for name in present if _SHARDS.fullmatch(name) and name not in names]
        return api.create_commit(
            repo_id,
            [*operations, *(CommitOperationDelete(name) for name in gone)],
            repo_type="dataset",
            revision=revision,
            commit_message=f"Features of {manifest.settings.title}",
            parent_commit=seen.sha,
        ).oid
    except HubError:
        raise
    except Exception as error:
        raise explain(error, repo_id, token=token) from None


def fetch(source: str, cache_dir: str | os.PathLike | None = None) -> tuple[Path, str]:
    """Fetches a cache, or finds it in the Hub's own cache on this machine.

    Args:
        source: "name/features" or "name/features@revision".
        cache_dir: Where downloads go; None: where the Hub's client puts them.

    Returns:
        The folder and the commit.

    Raises:
        CacheError: there is no such repository or revision, it cannot be reached, or it holds no cache.
    """
    repo, revision = split_revision(source)
    try:
        folder = download(
            repo,
            repo_type="dataset",
            revision=revision,
            cache_dir=Path(cache_dir) if cache_dir is not None else None,
            allow_patterns=[MANIFEST, SETTINGS, CARD, "view*.safetensors"],
        )
    except Exception as error:  # no network, no repository, no right: the client has a class for each
        reason = redact(" ".join(str(error).split())[:300])
        raise CacheError(f"the feature cache {source} cannot be had ({type(error).__name__}): {reason}") from None
    if not (Path(folder) / MANIFEST).is_file():
        raise CacheError(f"the data set repository {source} holds no {MANIFEST}: it is no feature cache")
    return Path(folder), Path(folder).name


def card(manifest: Manifest, repo_id: str) -> str:
    """The card of the repository."""
    settings = manifest.settings
    licence = settings.data.license or License("other", "that of the data and of the teacher")
    terms: dict[str, Any] = licence.metadata()
    front = DatasetCardData(
        tags=["hf_reprot", "feature-cache"],
        source_datasets=[settings.data.repo] if settings.data.repo else None,
        **terms,
    )
    kept = "every position" if settings.positions else f"pooled ({settings.tokens})"
    said = settings.teacher.license.title if settings.teacher.license is not None else "not known"
    data_said = settings.data.license.title if settings.data.license is not None else "not known"
    layers = "\n".join(f"| `{cell(layer.name)}` | {' x '.join(map(str, layer.shape))} |" for layer in settings.layers)
    logits = f"\n| logits | {settings.classes} |" if settings.classes is not None else ""
    views = "\n".join(f"- {cell(view)}" for view in settings.views[:20])
    more = f"\n- and {len(settings.views) - 20} more" if len(settings.views) > 20 else ""
    text = f"""---
{front.to_yaml().strip()}
---

# Features of {cell(settings.teacher.name)} on {cell(settings.data.name)}

What layers of a teacher give for the images (or texts) of a data set, computed once, to train students from without
the teacher. {manifest.rows:,} rows, {settings.dtype}, {kept}, {manifest.bytes / 1e6:,.1f} MB.

> [!WARNING]
> Features can tell what the images or texts show, nearly as well as these themselves: share them only where you may
> share the data.

| | |
|---|---|
| Teacher | {model_link(settings.teacher)}, {cell(settings.teacher.architecture)} |
| Hash of its weights | `{settings.weights}` |
| Data | {data_link(settings.data)} |
| Licence of the data | {cell(data_said)} |
| Licence of the teacher | {cell(said)} |
| This cache (SHA-256) | `{manifest.digest}` |

| Layer | One row |
|---|---|
{layers}{logits}

Views of each example:

{views}{more}

## How to use it

```python
from hf_reprot import OTTransferTrainer

trainer = OTTransferTrainer(model=student, teacher_features="{repo_id}", args=args, train_dataset=train)
```

A row is found by the hash of exactly what the teacher saw: a run with other images, preprocessing or augmentation is
refused. The files are safetensors (tensors `keys`, `sources`, `checks`, `layer0`, ..., `logits`), which hold bfloat16
and can be read through the memory map; `datasets.load_dataset` does not read them.
"""
    return redact(text)
