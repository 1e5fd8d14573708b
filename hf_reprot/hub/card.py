"""The model card: from a `RunRecord` to README.md with metadata and pictures, and nothing that is not in the record."""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path

import jinja2

from ..utils.files import write_whole
from .eval_results import write_eval_results
from .examples import loading_examples
from .foreign import picture_of, repo_of
from .licenses import License, license_warnings
from .markdown import cell, code, data_title, plain, slug
from .metadata import card_metadata
from .paper import _paper
from .privacy import redact
from .record import RunRecord
from .sections import (
    compared_models,
    fact_rows,
    licence_sentences,
    limits,
    loss_formula,
    model_rows,
    opening,
    result_columns,
    result_rows,
    setting_table,
    speed_sentence,
    split_settings,
    teacher_rows,
)

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
CURVES = "images/training_curves.png"
COMPARISON = "images/teacher_and_student.png"
PLAN = "images/transport_plan_{}.png"
LAYERS = "images/layer_plan_{}.png"
UNKNOWN_REPO = "your-name/{}"


def write_card(record: RunRecord, folder: str | os.PathLike) -> Path:
    """Draws the pictures that the record can give and writes README.md beside the weights.

    The results go into `.eval_results/`, too.

    Pictures of plans come from training: the card shows those that lie in the folder.

    Returns:
        The card.
    """
    # matplotlib, not before a picture is drawn
    from ..plots.charts import comparison_figure, curves_figure
    from ..plots.maps import layer_plan_figure
    from ..plots.style import save_figure

    folder = Path(folder)
    figures = {CURVES: curves_figure(record.history), COMPARISON: comparison_figure(compared_models(record))}
    for facts in record.layer_plans:
        if facts.picture is not None and picture_of(facts.picture) is not None:
            names = (facts.student_layers, facts.teacher_layers)
            figures[facts.picture] = layer_plan_figure(facts.plan, facts.cost, *names)
    for name, figure in figures.items():
        if figure is not None:
            save_figure(figure, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    write_eval_results(record, folder)
    path = folder / CARD_FILE
    write_whole(path, render_card(record, folder))
    for warning in card_warnings(record):
        _warn_once(warning)
    return path


def rebuild_card(folder: str | os.PathLike, *, repo_id: str | None = None) -> Path:
    """Writes the card of a trained folder anew, from its `transfer.json`.

    Args:
        folder: A student's folder, or a checkpoint's.
        repo_id: The repository that the examples name; default: the one that the record knows.

    Returns:
        The card.

    Raises:
        FileNotFoundError: the folder holds no record.
        ValueError: the record is damaged.
    """
    record = RunRecord.load(folder)
    if repo_id is not None:
        record.repo_id = repo_id
        record.save(folder)
    return write_card(record, folder)


def render_card(record: RunRecord, folder: str | os.PathLike | None = None) -> str:
    """The text of the card; it shows the pictures that lie in the folder."""
    present = (lambda name: True) if folder is None else (lambda name: (Path(folder) / name).is_file())
    repo = repo_of(record.repo_id) or UNKNOWN_REPO.format(slug(record.name))
    changed, default = split_settings(record)
    text = _template().render(
        record=record,
        metadata=card_metadata(record).to_yaml().strip(),
        warnings=card_warnings(record),
        opening=opening(record),
        results=result_rows(record),
        result_columns=result_columns(record),
        models=model_rows(record),
        speeds=speed_sentence(record),
        pictures={name: path for name, path in (("curves", CURVES), ("comparison", COMPARISON)) if present(path)},
        plans=[pair for pair in record.pairs if picture_of(pair.picture) and present(pair.picture)],
        layer_plans=[facts for facts in record.layer_plans if picture_of(facts.picture) and present(facts.picture)],
        repo=repo,
        repo_known=repo_of(record.repo_id) is not None,
        examples=loading_examples(record, repo),
        facts=fact_rows(record),
        several_teachers=len(record.teachers) > 1,
        teacher_names=[teacher.name for teacher in record.teachers],
        teachers=teacher_rows(record),
        loss=loss_formula(record),
        changed_settings=changed,
        default_settings=default,
        training_settings=record.training | record.seeds,
        setting_table=setting_table,
        limits=limits(record),
        licences=licence_sentences(record),
        paper=_paper,
    )
    return redact(re.sub(r"\n{3,}", "\n\n", text).strip() + "\n")


def card_warnings(record: RunRecord) -> list[str]:
    """Sentences about licences that a reader has to know before all else."""
    others: dict[str, License | None] = {f"the teacher {teacher.name}": teacher.license for teacher in record.teachers}
    for data in record.data_sets():
        others[data_title(data)] = data.license
    return license_warnings(record.license, others, inherited=record.start.kind in ("hub", "folder"))


@functools.cache
def _warn_once(warning: str) -> None:
    """Into the log, once per process: a run writes many cards."""
    logger.warning("%s", warning)


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_reprot"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown: the filters escape what comes from outside
    )
    environment.filters |= {"text": plain, "cell": cell, "code": code}
    return environment.get_template("model_card.md.jinja")
