"""How a card names things: Markdown that shows what comes from outside and does nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

from .facts import DataFacts, ModelFacts
from .foreign import clean, escaped, repo_of, revision_of, url_of
from .record import RunRecord


def plain(value: Any) -> str:
    """Text from outside as Markdown that shows it and does nothing else."""
    return escaped(value)


def cell(value: Any) -> str:
    """`plain` inside a table."""
    return plain(value).replace("|", "\\|")


def code(value: Any) -> str:
    """What stands between two backticks, inside a table, too."""
    return " ".join(clean(str(value)).split()).replace("`", "'").replace("|", "\\|")


def setting_value(value: Any) -> str:
    """A setting as code."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    return f"`{code(json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value)}`"


def link(text: str, url: str) -> str:
    """A link in Markdown; the text alone where the address is not of a strict form."""
    return f"[{cell(text)}]({url})" if url_of(url) is not None else cell(text)


def repository_link(name: str, revision: str | None, page: str = "") -> str:
    """A link to a repository at a revision; commits are shortened in the text, not in the link."""
    if repo_of(name) is None:
        return cell(name)
    if revision is None or revision_of(revision) is None:
        return link(name, f"https://huggingface.co/{page}{name}")
    short = revision[:12] if re.fullmatch(r"[0-9a-f]{40}", revision) else revision
    return link(f"{name}@{short}", f"https://huggingface.co/{page}{name}/tree/{revision}")


def model_link(model: ModelFacts) -> str:
    """A model by its name, with a link where it is on the Hub."""
    return repository_link(model.name, model.revision) if model.origin == "hub" else cell(model.name)


def origin_link(model: ModelFacts) -> str:
    """Where the weights of a teacher come from."""
    if model.origin == "hub":
        return model_link(model)
    return f"folder {cell(model.name)}" if model.origin == "folder" else "not recorded"


def start_link(record: RunRecord) -> str:
    """Where the weights of the student started."""
    start = record.start
    if start.kind == "hub":
        return repository_link(start.name or "", start.revision)
    return {"folder": f"folder {cell(start.name or '')}", "scratch": "new random weights"}.get(
        start.kind, "not recorded"
    )


def start_sentence(record: RunRecord) -> str:
    """The same as the end of "The student's weights started ..."."""
    place = start_link(record)
    if record.start.kind == "unrecorded":
        return "in a way that was not recorded"
    if record.start.kind == "scratch":
        return place
    new, classes = record.start.new_classes, record.classes
    if not new:
        return f"from {place}"
    what = "the head" if classes is None or new >= classes else f"{new} of the head's {classes} classes"
    return f"from {place}; {what} from new random weights"


def data_link(data: DataFacts, split: bool = True) -> str:
    """A data set with its revision, configuration, split and size."""
    title = repository_link(data.repo, data.revision, "datasets/") if data.repo is not None else cell(data.name)
    details = [data.config or "", f"split {data.split}" if split and data.split else "", data.part or ""]
    if split and data.samples is not None:
        details.append(f"{data.samples:,} samples")
    details = [cell(detail) for detail in details if detail]
    return title + (f" ({', '.join(details)})" if details else "")


def data_title(data: DataFacts, name: str | None = None) -> str:
    """A data set in a sentence, by its name or by a link in the place of it."""
    name = name or data.name
    return f"the {name}" if data.name.startswith("data ") else f"the data {name}"


def parameter_count(number: int) -> str:
    """A number of parameters, in millions or billions."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,}"


def score(value: float | None) -> str:
    """A metric to four digits; empty where there is none."""
    return "" if value is None else f"{value:.4f}"


def duration(seconds: float) -> str:
    """A time in the unit that fits it."""
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def slug(name: str) -> str:
    """A name as the Hub takes it."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.") or "student"


def upper(text: str) -> str:
    """The start of a sentence."""
    return text[:1].upper() + text[1:]
