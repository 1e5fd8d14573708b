"""Tables and pictures of a study, from its lines."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from .grid import Results, chosen_factor
from .methods import METHODS
from .plan import Setting, Study


def accuracies(results: Results, setting: str, method: str, labels: int) -> dict[int, float]:
    """Test accuracy by seed of a method's final runs, at the weight that was chosen."""
    factor = chosen_factor(results, setting, method)
    lines = results.where(phase="final", setting=setting, method=method, labels=labels, factor=factor)
    return {line["seed"]: line["test"] for line in lines}


def spread(values: Sequence[float]) -> str:
    """Shares as "mean ± standard deviation", in percent."""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float, int, int]:
    """Mean difference over the seeds that both have, half of its 95 % interval (Student's t), seeds ahead, seeds."""
    seeds = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[s] - theirs[s] for s in seeds])
    if len(seeds) < 2:
        return (float(differences.mean()) if seeds else math.nan), math.nan, int((differences > 0).sum()), len(seeds)
    half = stats.t.ppf(0.975, len(seeds) - 1) * differences.std(ddof=1) / math.sqrt(len(seeds))
    return float(differences.mean()), float(half), int((differences > 0).sum()), len(seeds)


def table(study: Study, results: Results, setting: Setting) -> list[str]:
    """A table in Markdown: a row a method, two columns a number of labels."""
    reference = {n: accuracies(results, setting.name, study.reference, n) for n in study.labels}
    rows = []
    for method in study.methods_of(setting):
        cells = [_weight(study, results, setting, method)]
        for labels in study.labels:
            values = accuracies(results, setting.name, method, labels)
            cells.append(spread(list(values.values())) if values else "")
            if method == study.reference or not values:
                cells.append("")
                continue
            mean, half, ahead, count = paired(values, reference[labels])
            cells.append(f"{100 * mean:+.1f} ± {100 * half:.1f} ({ahead} of {count})" if count > 1 else "")
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    columns = [c for n in study.labels for c in (f"{n} labels", f"against {study.reference}")]
    head = f"| {setting.name} | weight | " + " | ".join(columns) + " |"
    return [head, "|---" * (2 + len(columns)) + "|", *rows]


def _weight(study: Study, results: Results, setting: Setting, method: str) -> str:
    weight = METHODS[method].weight
    return f"{weight[1] * chosen_factor(results, setting.name, method):.3g}" if weight else ""


def report(study: Study, results: Results) -> str:
    """Everything that a study found, in Markdown."""
    parts = [f"### {study.title}", study.notes.strip(), _legend(study)]
    for setting in study.settings:
        if results.where(phase="final", setting=setting.name):
            parts.append("\n".join(table(study, results, setting)))
    return "\n\n".join(part for part in parts if part)


def _legend(study: Study) -> str:
    several = f" Seed s learns from teacher s modulo {study.teachers}." if study.teachers > 1 else ""
    return (
        f"Test accuracy in % after the last step, mean ± standard deviation over {study.seeds} seeds (fewer where the "
        f"count says so); beside it the difference to {study.reference} on the same seeds, ± half of its 95 % interval "
        f"(in how many seeds ahead).{several}"
    )


def short_table(study: Study, results: Results) -> str:
    """A row a method, a column a setting that is complete: with `study.shown` labels, the accuracy and the difference
    to the reference. Empty where no setting is complete."""
    labels, settings = study.shown or study.labels[-1], complete_settings(study, results)
    if not settings:
        return ""
    methods = list(dict.fromkeys(m for s in settings for m in study.methods_of(s)))
    rows = []
    for method in methods:
        cells = []
        for setting in settings:
            if method not in study.methods_of(setting):
                cells.append("")
                continue
            values = accuracies(results, setting.name, method, labels)
            cell = f"{100 * np.mean(list(values.values())):.1f}"
            if method != study.reference:
                reference = accuracies(results, setting.name, study.reference, labels)
                mean, half, _, _ = paired(values, reference)
                cell += f" ({100 * mean:+.1f} ± {100 * half:.1f})"
            cells.append(cell)
        rows.append(f"| {method} | " + " | ".join(cells) + " |")
    title = f"**{study.title}** ({labels} labels; in brackets against {study.reference}, ± half of the 95 % interval)"
    head = "| | " + " | ".join(s.name for s in settings) + " |"
    return "\n".join([title, "", head, "|---" * (len(settings) + 1) + "|", *rows])


def complete_settings(study: Study, results: Results) -> list[Setting]:
    """The settings of which every run has been made."""
    return [
        setting
        for setting in study.settings
        if all(
            len(accuracies(results, setting.name, method, labels)) == study.seeds
            for method in study.methods_of(setting)
            for labels in study.labels
        )
    ]
