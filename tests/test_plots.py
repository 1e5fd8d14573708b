"""Pictures: what they show, in which order, and that they leave matplotlib alone."""

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from hf_reprot.plots import (
    comparison_figure,
    curves_figure,
    layer_map_figure,
    layer_plan_figure,
    plan_figure,
    save_figure,
    sorted_plan,
)


def _texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


def test_a_sharp_plan_becomes_a_diagonal():
    generator = np.random.default_rng(0)
    permutation = generator.permutation(40)
    plan = np.zeros((40, 40))
    plan[np.arange(40), permutation] = 1 / 40
    assert np.array_equal(sorted_plan(plan), np.eye(40) / 40)


@pytest.mark.parametrize("shape", [(6, 18), (18, 6)])
def test_the_wider_side_is_sorted_and_loose_neurons_come_last(shape):
    wide, narrow = max(shape), min(shape)
    partner = np.random.default_rng(1).permutation(wide - 3) % narrow
    plan = np.full((wide, narrow), 1e-4)
    plan[np.arange(wide - 3), partner] = 1.0
    plan[[0, wide - 1]] = plan[[wide - 1, 0]]  # loose ones stand first and last
    plan = plan if shape[0] == wide else plan.T
    result = sorted_plan(plan)
    result = result if shape[0] == wide else result.T
    best = result.argmax(1)[: wide - 3]
    assert (np.diff(best) >= 0).all()
    assert result[wide - 3 :].max() < 0.5


def test_pictures_have_the_width_of_a_readme_and_equal_bytes(tmp_path):
    plan = torch.rand(300, 500)
    first = save_figure(plan_figure(plan, student="a", teacher="b"), tmp_path / "deep" / "a.png")
    second = save_figure(plan_figure(plan, student="a", teacher="b"), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    with Image.open(first) as image:
        assert image.width == 1280
        assert image.height < 1280
    assert "300 neurons of a" in _texts(plan_figure(plan, student="a", teacher="b"))


def test_a_plan_stands_beside_chance_on_one_scale():
    sharp, noise = np.eye(6) / 6, np.full((6, 6), 1 / 36)
    figure = plan_figure(sharp, chance=noise, student="a", teacher="b")
    left, right = (axes.images[0] for axes in figure.axes[:2])
    assert left.norm.vmax == right.norm.vmax == pytest.approx(6.0)
    assert left.get_array().max() == pytest.approx(6.0)
    assert np.allclose(right.get_array(), 1.0)
    assert {"The plan", "Chance: the same, samples shuffled"} <= set(_texts(figure))
    assert len(plan_figure(sharp).axes) == 2  # the plan and its scale


def test_the_scale_of_a_plan_does_not_depend_on_its_mass():
    plan = np.random.default_rng(0).random((5, 7))
    one, other = (plan_figure(mass * plan).axes[0].images[0].get_array() for mass in (1.0, 10.0))
    assert np.allclose(one, other)


def test_no_picture_touches_the_global_state():
    import matplotlib.pyplot as plt

    before, open_before = dict(matplotlib.rcParams), plt.get_fignums()
    plan_figure(np.eye(3))
    layer_map_figure([[0.1, 0.2]], ["a"], ["b", "c"])
    assert plt.get_fignums() == open_before
    assert dict(matplotlib.rcParams) == before


def test_the_map_frames_the_closest_layer_of_each_row():
    values = [[0.9, 0.1, 0.5], [0.2, float("nan"), 0.7], [float("nan")] * 3]
    figure = layer_map_figure(values, ["a", "b", "c"], ["x", "y", "z"])
    frames = list(figure.axes[0].patches)
    assert [(round(f.get_x() + 0.47), round(f.get_y() + 0.46)) for f in frames] == [(1, 0), (0, 1)]
    assert {"0.10", "0.90", "x", "transport cost"} <= set(_texts(figure))
    similar = layer_map_figure(values[:2], ["a", "b"], ["x", "y", "z"], label="CKA", lower_is_closer=False)
    assert [round(f.get_x() + 0.47) for f in similar.axes[0].patches] == [0, 2]
    large = layer_map_figure(np.random.default_rng(0).random((30, 20)), list("a" * 30), list("b" * 20))
    assert len(large.axes[0].patches) == 30


def test_a_matching_of_layers_frames_what_carries_mass():
    plan = torch.tensor([[0.375, 0.125, 0.0], [0.0, 0.0, 0.5]])
    figure = layer_plan_figure(plan, torch.rand(2, 3), ["a", "b"], ["x", "y", "z"])
    frames = [(round(f.get_y() + 0.46), round(f.get_x() + 0.47)) for f in figure.axes[0].patches]
    assert frames == [(0, 0), (0, 1), (1, 2)]
    assert {"75%", "25%", "100%", "z"} <= set(_texts(figure))


def test_curves_show_terms_and_evaluation():
    log = [{"step": i, "loss": 2.0, "task_loss": 1.5, "ot_loss": 0.01, "kd_loss": 0.5} for i in range(1, 20)]
    log += [{"step": step, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0} for step in (10, 19)]
    figure = curves_figure(log)
    lines = [[line.get_label() for line in axes.lines] for axes in figure.axes]
    assert lines == [["whole loss", "task", "transport", "logit distillation"], ["accuracy"]]
    assert figure.axes[0].get_yscale() == "log"
    styles = {(line.get_marker(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 4  # told apart without colour
    losses = curves_figure([{"step": step, "eval_loss": 1.0} for step in (1, 2)])
    assert [line.get_label() for line in losses.axes[0].lines] == ["loss"]
    assert curves_figure([]) is None


def test_one_evaluation_is_no_curve():
    log = [{"step": i, "loss": 2.0} for i in (1, 2)]
    once = [{"step": 2, "eval_accuracy": 0.5}]
    assert [axes.get_title() for axes in curves_figure(log + once).axes] == ["Terms of the loss in training"]
    # the last evaluation of a run and one that is asked for afterwards stand at the same step
    assert len(curves_figure(log + once + once).axes) == 1
    assert curves_figure(once) is None


def test_teacher_and_student_side_by_side():
    models = [
        {"name": "teacher", "parameters": 25_000_000, "accuracy": 0.9},
        {"name": "student", "parameters": 11_000_000, "accuracy": 0.85, "samples_per_second": 3.0},
    ]
    figure = comparison_figure(models)
    assert [axes.get_title() for axes in figure.axes] == ["Parameters (millions)", "Accuracy (%)"]
    assert {" 25.0", " 85.0"} <= set(_texts(figure))
    assert figure.axes[0].patches[0].get_hatch() != figure.axes[0].patches[1].get_hatch()
    assert comparison_figure(models[:1]) is None


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plan_figure(np.zeros(3)), "must be a matrix"),
        (lambda: plan_figure(-np.eye(3)), "no negative entry"),
        (lambda: plan_figure(np.zeros((2, 2))), "no negative entry"),
        (lambda: plan_figure(np.full((2, 2), np.nan)), "must be finite"),
        (lambda: plan_figure(np.eye(2), chance=np.eye(3)), "the plan's shape \\(2, 2\\), got \\(3, 3\\)"),
        (lambda: layer_map_figure(np.eye(3), ["a"], ["b"]), "as many as there are names"),
        (lambda: layer_plan_figure(np.eye(2), np.eye(3), ["a"] * 2, ["b"] * 2), "got \\(2, 2\\) and \\(3, 3\\)"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
