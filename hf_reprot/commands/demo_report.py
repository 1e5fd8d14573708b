"""What the demo leaves to look at: pictures, and one page that holds all of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
from torch import Tensor, nn

from ..features.activations import pooled_neurons
from ..features.architecture import last_layer
from ..features.tables import evaluating
from ..features.taps import Taps
from ..ot import neuron_cost, solve
from ..plots.charts import accuracy_figure, curves_figure
from ..plots.maps import plan_figure
from ..plots.responses import responses_figure
from ..plots.style import save_figure
from ..utils.files import write_whole
from .demo_parts import Pixels

REPORT = "report.html"
_SHOWN = 24  # images with answers
_ABOUT = {
    "accuracy.png": ("Accuracy, seed by seed", "A dot is one seed, a bar the mean."),
    "curves.png": ("Curves of training", "The terms of the loss as they were logged, before their weights."),
    "plan.png": (
        "Which neuron goes with which",
        "The plan between the neurons of student and teacher on test images, beside that of the same neurons with the "
        "teacher's images shuffled: what the left has and the right has not is what both share.",
    ),
    "neurons.png": ("What matched neurons respond to", "The best matches, and the test images that excite them most."),
}


def draw_pictures(
    folder: Path,
    accuracies: Mapping[str, Mapping[str, Any]],
    trainer: Any,
    teacher: nn.Module,
    split: Any,
    test: Pixels,
) -> list[Path]:
    """Draws the accuracies, and of one student by transport its curves, its plan and its matched neurons.

    Args:
        folder: Where they go.
        accuracies: For each job, by its title, the accuracies of every method.
        trainer: The student's.
        teacher: Its teacher.
        split: The test images with labels.
        test: The same, processed.
    """
    student, theirs = (last_neurons(model, test) for model in (trainer.model, teacher))
    cost = neuron_cost(student, theirs)
    order = torch.randperm(len(theirs), generator=torch.Generator().manual_seed(0))
    plan, chance = solve(cost).plan, solve(neuron_cost(student, theirs[order])).plan
    images = np.stack([np.asarray(image.convert("L")) for image in split["image"]])
    figures = {
        "accuracy.png": accuracy_figure(accuracies),
        "curves.png": curves_figure(trainer.state.log_history),
        "plan.png": plan_figure(plan, chance=chance, student="the student", teacher="the teacher"),
        "neurons.png": responses_figure(images, student, theirs, plan),
    }
    return [save_figure(figure, folder / name) for name, figure in figures.items() if figure is not None]


def write_report(
    folder: Path, result: Any, teacher: nn.Module, students: Mapping[str, nn.Module], split: Any, test: Pixels
) -> Path:
    """Writes a page with tables, pictures and answers; it holds everything that it shows, and loads nothing.

    Args:
        folder: Where it goes.
        result: A `DemoResult` with its pictures.
        teacher: The teacher.
        students: Students of one seed, by method.
        split: The test images with labels.
        test: The same, processed.
    """
    answers = {"teacher": _answers(teacher, test)} | {name: _answers(model, test) for name, model in students.items()}
    differ = torch.stack([found != answers["teacher"] for found in answers.values()]).any(0)
    order = sorted(range(len(test)), key=lambda i: (not bool(differ[i]), i))[:_SHOWN]
    digits = [
        {
            "label": int(test.labels[i]),
            "data": _png(split[i]["image"]),
            "answers": {name: int(found[i]) for name, found in answers.items()},
        }
        for i in order
    ]
    pictures = [
        {"title": _ABOUT[path.name][0], "text": _ABOUT[path.name][1], "data": _encoded(path.read_bytes())}
        for path in result.pictures
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hf_reprot"), undefined=jinja2.StrictUndefined, autoescape=True, trim_blocks=True
    )
    text = environment.get_template("demo_report.html.jinja").render(
        images=result.images,
        teacher=result.teacher,
        labels=result.labels,
        seeds=result.seeds,
        seconds=f"{result.seconds:.0f}",
        reading=result.reading(),
        tables=result.rows(),
        ours=result.ours,
        pictures=pictures,
        answers_of=result.jobs[result.kept].title,
        digits=digits,
    )
    path = folder / REPORT
    write_whole(path, text)
    return path


@torch.no_grad()
def last_neurons(model: nn.Module, data: Pixels) -> Tensor:
    """(images, neurons): what a model's head reads, pooled."""
    layer = last_layer(model)
    taps = Taps(model, [layer])
    try:
        with evaluating(model), taps.recording():
            model(data.pixels["pixel_values"])
        return pooled_neurons(taps.take()[layer]).float()
    finally:
        taps.close()


@torch.no_grad()
def _answers(model: nn.Module, data: Pixels) -> Tensor:
    with evaluating(model):
        return model(data.pixels["pixel_values"]).logits.argmax(-1)


def _png(image: Any) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return _encoded(file.getvalue())


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
