"""Results in the Hub's newest form: YAML files in `.eval_results/`, beside the card's `model-index`.

The Hub shows them on the model's page, and on the leaderboard of a data set that is a benchmark. Form:
https://huggingface.co/docs/hub/eval-results.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from ..utils.files import write_whole
from .foreign import repo_of, revision_of, text_of
from .record import Evaluation, RunRecord

FOLDER = ".eval_results"
EVAL_RESULT = re.compile(rf"{re.escape(FOLDER)}/\w[\w.-]*\.ya?ml", re.ASCII)
_OURS = "# Written by hf_reprot from transfer.json.\n"


def eval_result_files(record: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """The entries of each file, by its path in the repository: one for each data set of the Hub with a result.

    A data set that does not lie on the Hub has no entry: the form names data by their id there. Of several metrics the
    accuracy is the result, or else the first that is no loss.
    """
    files: dict[str, list[dict[str, Any]]] = {}
    for evaluation in record.evaluations:
        repo, metric = repo_of(evaluation.data.repo), _metric(evaluation)
        if repo is None or metric is None:
            continue
        path = f"{FOLDER}/{repo.replace('/', '--')}.yaml"
        entry = _entry(record, evaluation, repo, metric)
        if entry["dataset"] not in [other["dataset"] for other in files.get(path, ())]:
            files.setdefault(path, []).append(entry)
    return files


def write_eval_results(record: RunRecord, folder: str | os.PathLike) -> list[Path]:
    """Writes the files into a student's folder, and takes those out that an earlier run left there.

    Files that somebody else wrote stay.

    Returns:
        The files.
    """
    folder, files = Path(folder), eval_result_files(record)
    for path in (folder / FOLDER).glob("*.yaml"):
        if f"{FOLDER}/{path.name}" not in files and path.read_text("utf-8").startswith(_OURS):
            path.unlink()
    for name, entries in files.items():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, _OURS + yaml.safe_dump(entries, sort_keys=False, allow_unicode=True))
    return [folder / name for name in files]


def _metric(evaluation: Evaluation) -> str | None:
    names = [name for name in evaluation.metrics if name != "loss"]
    return "accuracy" if "accuracy" in names else next(iter(names), None)


def _entry(record: RunRecord, evaluation: Evaluation, repo: str, metric: str) -> dict[str, Any]:
    data = evaluation.data
    dataset = {"id": repo, "task_id": text_of(data.config) or "default"}
    revision = revision_of(data.revision)
    if revision is not None:
        dataset["revision"] = revision
    entry: dict[str, Any] = {"dataset": dataset, "value": evaluation.metrics[metric]}
    own = repo_of(record.repo_id)
    if own is not None:
        entry["source"] = {"url": f"https://huggingface.co/{own}", "name": "Model card"}
    parts = [text_of(metric) or "metric", text_of(data.split) and f"split {text_of(data.split)}", text_of(data.part)]
    entry["notes"] = ", ".join(filter(None, parts))
    return entry
