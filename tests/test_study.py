"""The study's machinery on made-up images: grid, resuming, choice of weights, tables."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from studies import bench, grid, networks, steps
from studies.grid import Results, chosen_factor, run_study
from studies.images import Images, Pixels, processor_of
from studies.methods import METHODS
from studies.plan import read
from studies.report import accuracies, paired, report, short_table

STUDY = """
name: tiny
title: A tiny study
images: {name: made-up, size: 8, pool: 24, validation: 10, test: 20}
settings:
  - {name: pruned, teacher: conv-6-8, student: conv-4-4, start: kept}
  - {name: "to ViT", teacher: conv-6-8, student: vit-8-2, without: [FitNet]}
methods: [student alone, logits, transport, FitNet, every position and logits]
labels: [12]
seeds: 2
steps: 2
batch_size: 6
teacher_steps: 3
tuning_labels: 12
tuning_seeds: 1
"""


def made_up(**_):
    generator = torch.Generator().manual_seed(0)

    def part(count):
        labels = torch.arange(count) % 2
        pixels = torch.randn(count, 3, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
        return Pixels(pixels, labels, torch.arange(count))

    return Images(part(24), part(10), part(20), classes=2, processor=processor_of(8))


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_REPROT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(bench, "load", made_up)
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY)
    return read(path)


@pytest.mark.slow
def test_a_study_runs_goes_on_and_prints(study, tmp_path):
    path = tmp_path / "tiny.jsonl"
    assert not run_study(study, Results(path), seconds=0)  # stopped after one run
    assert len(path.read_text().splitlines()) == 2  # the machine, and that run
    path.write_text(path.read_text() + '{"phase": "tuning", "sett')  # killed in the middle of a line
    results = Results(path)
    assert run_study(study, results, seeds=[1])
    assert {line["seed"] for line in results.where(phase="final")} == {1}
    assert short_table(study, results) == ""  # no setting is complete
    assert run_study(study, results)
    tried = Counter((line["setting"], line["method"]) for line in results.where(phase="tuning"))
    assert len(tried) == 4 + 3
    assert all(3 <= count <= 5 for count in tried.values())
    assert len(results.where(phase="final")) == 2 * (5 + 4)
    lines = len(path.read_text().splitlines())
    assert run_study(study, Results(path))
    assert len(path.read_text().splitlines()) == lines  # nothing is run twice
    text = report(study, Results(path))
    assert text.count("| transport |") == 2
    assert text.count("| FitNet |") == 1
    values = accuracies(Results(path), "pruned", "transport", 12)
    assert f"{100 * np.mean(list(values.values())):.1f} ± " in text
    short = short_table(study, Results(path))
    assert f"| transport | {100 * np.mean(list(values.values())):.1f} |" in short
    assert [row.count("|") for row in short.splitlines()[2:]] == [4] * 7


def test_the_best_weight_on_validation_images_is_chosen(tmp_path):
    results = Results(tmp_path / "r.jsonl")
    for factor, seed, value in [(0.2, 100, 0.5), (0.2, 101, 0.9), (1.0, 100, 0.8), (1.0, 101, 0.8), (5.0, 100, 0.6)]:
        key = {"phase": "tuning", "setting": "s", "method": "transport", "factor": factor, "labels": 1, "seed": seed}
        results.add(**key, validation=value, test=1 - value)
    assert chosen_factor(results, "s", "transport") == 1.0
    assert chosen_factor(results, "other", "transport") == 1.0


def test_where_the_best_weight_is_the_last_one_more_is_tried(study, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    key = {"phase": "tuning", "setting": "pruned", "method": "logits", "labels": 12, "seed": 100}
    tried = []
    while factors := grid._next_factors(study, results, "pruned", "logits"):
        for factor, _ in factors:
            results.add(**key, factor=factor, validation=min(factor, 25.0) - 0.01 * (factor > 25), test=0)
            tried.append(factor)
    assert tried == [0.2, 1.0, 5.0, 25.0, 125.0]
    assert chosen_factor(results, "pruned", "logits") == 25.0


def test_paired_differences_have_students_interval():
    ours, theirs = {0: 0.5, 1: 0.7, 2: 0.6, 9: 0.1}, {0: 0.4, 1: 0.5, 2: 0.7}
    mean, half, ahead, count = paired(ours, theirs)
    low, high = stats.t.interval(0.95, 2, loc=np.mean([0.1, 0.2, -0.1]), scale=stats.sem([0.1, 0.2, -0.1]))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert (ahead, count) == (2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("methods: [student alone, transprot]", "Did you mean 'transport'"),
        ("settings: [{name: x, teacher: conv-4, student: conv-4, strat: new}]", "Did you mean 'start'"),
        ("settings: [{name: x, teacher: conv-4}]", "a setting needs student"),
        ("steeps: 5", "Did you mean 'steps'"),
    ],
)
def test_a_mistake_in_a_study_is_named(tmp_path, change, message):
    path = tmp_path / "wrong.yaml"
    name = change.split(":")[0]
    kept = [block for block in STUDY.strip().split("\n") if not block.startswith((f"{name}:",))]
    if name == "settings":
        kept = [line for line in kept if not line.startswith("  - ")]
    path.write_text("\n".join([*kept, change]))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_kept_neurons_of_all_widths_are_a_permuted_copy():
    torch.manual_seed(0)
    teacher = networks.ConvNet((4, 6), 3, 3).eval()
    copy = networks.kept_neurons(teacher, (4, 6), seed=1).eval()
    images = torch.randn(5, 3, 8, 8)

    def features(model):
        return model.blocks[1](model.blocks[0](images)).mean((2, 3))

    with torch.no_grad():
        ours, theirs = features(copy), features(teacher)
    order = torch.cdist(ours.t(), theirs.t()).argmin(1)
    torch.testing.assert_close(ours, theirs[:, order])
    assert sorted(order.tolist()) == list(range(6))
    assert order.tolist() != list(range(6))


def test_a_remembered_teacher_gives_the_rows_of_its_views():
    pixels = Pixels(torch.randn(4, 3, 8, 8), torch.arange(4), torch.arange(4), views=2)
    views = pixels.both_views()
    remembered = networks.Remembered(views.mean((2, 3)), torch.zeros(8, 2))
    kept = {}
    remembered.features.register_forward_hook(lambda module, args, output: kept.update(rows=output))
    items = [pixels.take(np.array([3, 1]))[i % 2] for i in range(8)]
    remembered(torch.stack([torch.as_tensor(item["teacher_index"]) for item in items]))
    torch.testing.assert_close(kept["rows"], torch.stack([item["pixel_values"].mean((1, 2)) for item in items]))


def test_results_are_lines_of_json(tmp_path):
    results = Results(tmp_path / "deep" / "r.jsonl")
    results.add(phase="final", setting="s", method="m", factor=1.0, labels=1, seed=0, test=0.5)
    assert json.loads((tmp_path / "deep" / "r.jsonl").read_text())["test"] == 0.5
    key = {"phase": "final", "setting": "s", "method": "m", "factor": 1.0, "labels": 1, "seed": 0}
    assert Results(results.path).find(**key)["test"] == 0.5


def test_each_seed_has_a_teacher_and_a_rolled_one_says_nothing(study):
    several = dataclasses.replace(study, teachers=2)
    machine = bench.Bench(several)
    setting, how = several.settings[1], METHODS["Gaussian transport"]
    first, second, third = (machine._teacher(setting, how, machine.images(0), seed) for seed in range(3))
    assert first is third
    assert first.title != second.title
    of_the_choice = machine._teacher(setting, how, machine.images(0), 100)
    assert of_the_choice.title not in (first.title, second.title)
    assert first.title.endswith(bench.weights_digest(machine.trained("conv-6-8", seed=2000)))
    rolled = machine._teacher(setting, METHODS["rolled teacher"], machine.images(0), 0)
    order = torch.cdist(rolled.table, first.table).argmin(1)
    assert sorted(order.tolist()) == list(range(len(order)))  # the same rows, of other images
    assert (order == torch.arange(len(order))).float().mean() < 0.2


def test_a_line_says_by_which_code_and_which_teacher(study, tmp_path):
    results = Results(tmp_path / "r.jsonl")
    only = dataclasses.replace(
        study, methods=["Gaussian transport, then a linear head"], labels=[8, 12], tuning_labels=0
    )
    assert run_study(only, results, only="to ViT", seeds=[0])
    lines = results.where(phase="final")
    assert [line["labels"] for line in lines] == [8, 12]
    assert all(re.fullmatch(r"conv-6-8, seed 1000, [0-9a-f]{12}", line["teacher"]) for line in lines)
    assert all(re.fullmatch(r"([0-9a-f]{12}\+?)?", line["code"]) for line in lines)
    # Without labels there is one student for both numbers of them: the second has only its head to fit.
    assert lines[1]["seconds"] < lines[0]["seconds"]


def test_other_weights_have_another_digest():
    model = networks.build("conv-4", 2, 3, 8, 0)
    digest = bench.weights_digest(model)
    assert digest == bench.weights_digest(networks.build("conv-4", 2, 3, 8, 0))
    headless = bench.weights_digest(model, without="head.")
    with torch.no_grad():
        model.head.bias.add_(1e-3)
    assert digest != bench.weights_digest(model)
    assert headless == bench.weights_digest(model, without="head.")


def test_steps_to_the_accuracy_of_the_first_method(study, tmp_path):
    results = Results(tmp_path / "steps.jsonl", steps.KEY)
    few = dataclasses.replace(
        study, settings=study.settings[:1], methods=["student alone, its rate tuned", "transport"], seeds=2
    )

    def add(method, factor, count, seed, test, validation):
        line = dict(zip(steps.KEY, ("pruned", method, factor, count, 12, seed), strict=True))
        results.add(**line, test=test, validation=validation)

    for seed in range(2):
        for count, value in ((10, 0.5), (20, 0.6), (40, 0.7)):
            add("student alone, its rate tuned", 0.2, count, seed, value, 0.9)
            add("student alone, its rate tuned", 5.0, count, seed, 0.95, 0.1)  # not the best on validation images
            add("transport", 1.0, count, seed, value + (0.1 if count >= 20 else 0.0), 0.5)
    text = steps.report(few, [10, 20, 40], results)
    assert "| student alone, its rate tuned | 50.0 ± 0.0 | 60.0 ± 0.0 | 70.0 ± 0.0 |" in text
    assert "transport: as accurate as the best of student alone, its rate tuned after 20 steps in all seeds." in text


def test_steps_are_run_for_every_number_of_them(study, tmp_path):
    results = Results(tmp_path / "steps.jsonl", steps.KEY)
    few = dataclasses.replace(study, settings=study.settings[:1], methods=["transport"], seeds=1)
    steps.run(few, [1, 2], results)
    steps.run(few, [1, 2], results)  # nothing is missing
    assert [(line["steps"], line["factor"], line["labels"]) for line in results.lines] == [(1, 1.0, 12), (2, 1.0, 12)]


def test_of_several_pretrained_teachers_each_seed_has_its_own(study):
    setting = dataclasses.replace(study.settings[0], teacher=["a", "b", "c"])
    assert [setting.teacher_of(seed) for seed in (0, 1, 2, 3, 100, 101)] == ["a", "b", "c", "a", "a", "a"]
    assert study.settings[0].teacher_of(5) == "conv-6-8"
