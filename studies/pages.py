"""Writes what stands on a study: docs/study.md, pictures, the short tables of docs/evidence, the cards in model_cards.

python -m studies.pages
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from hf_reprot.plots import save_figure

from . import steps, upper_stages
from .bench import results_folder
from .cards import write_cards
from .footprint import footprint_table
from .grid import Results
from .plan import Study, read
from .report import accuracies, report, short_table

ROOT = Path(__file__).resolve().parents[1]
STUDIES = (
    *("families_unlabelled", "small_unlabelled", "clipart_unlabelled", "positions_unlabelled"),
    "families",
    *("finetune", "finetune_fashion", "distil", "small", "coupling", "levers", "long", "ablation"),
)
_IN_SHORT = (
    *("families_unlabelled", "small_unlabelled", "clipart_unlabelled", "positions_unlabelled"),
    *("families", "finetune", "finetune_fashion", "distil", "small", "coupling"),
)
_BEGIN, _END = "<!-- study -->", "<!-- end of study -->"
_HEAD = """# What was measured

Every number here comes from `studies/results/`, a line a run, and this page from them by
`python -m studies.pages`. `python -m studies studies/NAME.yaml` makes the runs anew.

Each method's weight was the best of three (its own times 0.2, 1 and 5; where the best was the last on its side, up to
two more there, by factors of 5) on validation images, over two seeds that no table shows, with one number of labels.
Where a term stands alone in the loss (label-free, then a head) its weight is not tuned: Adam does not see it.
All other settings are the same for all. The figures are those after the last step. A difference whose interval holds 0
is none.
"""


_FOOTPRINT = """What a method costs: a training step with a live teacher, one thread, batches of 64 (in brackets as a
multiple of the student alone in the same round, medians of 5), and the most that the tensors of a step take (in
brackets: more than the student alone). `python -m studies.footprint studies/{name}.yaml`"""


def main() -> None:
    parts, short = [_HEAD], []
    plan = upper_stages.read(Path(__file__).with_name("upper_stages.yaml"))
    upper = Results(results_folder() / f"{plan.name}.jsonl", upper_stages.KEY)
    if upper.where(phase="final"):
        parts.append(upper_stages.report(plan, upper))
        parts.append("`python -m studies.upper_stages studies/upper_stages.yaml`")
    path = Path(__file__).with_name("steps.yaml")
    study, counts = steps.read(path)
    needed = Results(results_folder() / f"{study.name}.jsonl", steps.KEY)
    if needed.lines:
        parts.append(steps.report(study, counts, needed))
        parts.append("`python -m studies.steps studies/steps.yaml`")
    for name in STUDIES:
        path = Path(__file__).with_name(f"{name}.yaml")
        results = Results(results_folder() / f"{name}.jsonl")
        if not path.is_file() or not results.where(phase="final"):
            continue
        study = read(path)
        parts.append(report(study, results))
        parts.append(f"{_machine(results)} `python -m studies studies/{name}.yaml`")
        footprint = Results(results_folder() / f"{name}_footprint.jsonl")
        if footprint.where(phase="footprint"):
            parts.append(_FOOTPRINT.format(name=name))
            parts.append(footprint_table(study, footprint))
        if len(study.labels) > 1:
            picture = ROOT / "docs" / "pictures" / f"study_{name}.png"
            save_figure(labels_figure(study, results), picture)
            parts.append(f"![Accuracy against labels](pictures/{picture.name})")
        if name in _IN_SHORT:
            short.append(short_table(study, results))
    (ROOT / "docs" / "study.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    summary = ROOT / "docs" / "evidence" / "index.md"
    text = summary.read_text("utf-8")
    body = "\n\n".join(filter(None, short))
    summary.write_text(re.sub(f"{_BEGIN}.*?{_END}", lambda _: f"{_BEGIN}\n{body}\n{_END}", text, flags=re.S), "utf-8")
    write_cards()


def labels_figure(study: Study, results: Results) -> Figure:
    """Accuracy against the number of labels, a panel a setting, with the standard error over seeds."""
    settings = [s for s in study.settings if results.where(phase="final", setting=s.name)]
    figure = Figure(figsize=(4.6 * len(settings) + 2.4, 4.2), dpi=110, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(settings), sharey=True))
    ours = ("transport", "transport and logits")
    for panel, setting in zip(panels, settings, strict=True):
        for row, method in enumerate(study.methods_of(setting)):
            runs = [list(accuracies(results, setting.name, method, n).values()) for n in study.labels]
            if not all(runs):
                continue
            means = [100 * np.mean(run) for run in runs]
            errors = [100 * np.std(run, ddof=min(1, len(run) - 1)) / np.sqrt(len(run)) for run in runs]
            bold = method in ours
            style = {"lw": 2.6 if bold else 1.2, "ls": "-" if bold else ("--", ":", "-.")[row % 3]}
            panel.errorbar(study.labels, means, errors, label=method, marker="o^svDPX"[row % 7], ms=4, **style)
        panel.set_title(setting.name)
        panel.set_xlabel("labelled images")
        panel.set_xscale("log")
        panel.set_xticks(study.labels, [str(n) for n in study.labels])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy (%)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _machine(results: Results) -> str:
    machine = results.where(phase="machine")[-1]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if name != "hf-reprot")
    return f"{machine['cpu']}, one thread; {versions}."


if __name__ == "__main__":
    main()
