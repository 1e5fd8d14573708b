"""The recipes with hub ids: each is trained for two steps, on small stand-ins for what it names."""

from pathlib import Path

import pytest
import yaml
from transformers import ViTImageProcessor

from hf_reprot.commands.train import parse_recipe, run_recipe
from tests.toy_models import resnet

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))
# What a recipe cannot have here: the Hub, a GPU, worker processes, days.
HERE = {
    "dataset": "digits",
    "image_column": "image",
    "label_column": "label",
    "max_train_samples": 12,
    "max_eval_samples": 10,
    "per_device_train_batch_size": 4,
    "max_steps": 2,
    "dataloader_num_workers": 0,
    "bf16": "false",
    "use_cpu": "true",
    "report_to": "none",
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stand-in")
    resnet(labels=10).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_end_to_end(path, stand_in, tmp_path):
    named = yaml.safe_load(path.read_text())
    changes = HERE | {"output_dir": tmp_path / "out"}
    if "/" in named["student"]:
        changes["student"] = stand_in
    else:
        changes["image_size"] = 32
    if "teacher" in named:
        changes["teacher"] = stand_in
    flags = [part for name, value in changes.items() for part in (f"--{name}", str(value))]
    result = run_recipe(*parse_recipe(flags, path))
    assert result.trainer.state.global_step == 2
    assert 0 <= result.metrics["eval_accuracy"] <= 1
    assert (result.folder / "model.safetensors").is_file()
    first = result.trainer.state.log_history[0]
    for term in ("ot", "kd"):
        assert (f"{term}_loss" in first) == (float(named.get(f"{term}_weight", 0.0)) > 0)


def test_there_are_recipes():
    assert len(RECIPES) >= 5
