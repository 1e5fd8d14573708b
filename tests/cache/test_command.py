"""`hf-reprot cache`, and training from what it wrote, by one recipe."""

import pytest
import yaml

from hf_reprot.cache import FeatureCache
from hf_reprot.cli import main
from hf_reprot.commands.cache import parse_cache
from hf_reprot.settings.cache import CacheOptions
from tests.toy_models import vit

RUN = {
    "student": "resnet10t",
    "dataset": "digits",
    "image_size": 16,
    "max_train_samples": 40,
    "max_eval_samples": 10,
    "layer_pairs": "stages",
    "max_steps": 2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "student_model_args": {"stem_width": 8},
}


@pytest.fixture
def recipe(tmp_path):
    vit(labels=10, seed=3).save_pretrained(tmp_path / "teacher")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(RUN | {"teacher": str(tmp_path / "teacher")}))
    return path


def _run(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


def test_a_recipe_makes_the_cache_of_its_run(recipe, tmp_path, capsys):
    assert _run("cache", recipe, "--output_dir", tmp_path / "features", "--dtype", "float32") == 0
    table = capsys.readouterr().out
    assert "flip, not mirrored; flip, mirrored" in table
    cache = FeatureCache(tmp_path / "features")
    assert (len(cache), cache.settings.dtype, cache.settings.positions) == (80, "float32", False)
    assert list(cache.layers) == ["vit.layers.0", "vit.layers.1"]
    assert cache.settings.batch_size == 8
    assert _run("train", recipe, "--output_dir", tmp_path / "student", "--teacher_features", tmp_path / "features") == 0
    wrong = ("--output_dir", tmp_path / "student", "--teacher_features", tmp_path / "features")
    capsys.readouterr()
    assert _run("train", recipe, *wrong, "--augmentation", "crop+flip") == 2
    assert _run("train", recipe, *wrong, "--max_train_samples", "41") == 2
    assert _run("train", recipe, *wrong, "--ot_positions", "all") == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-reprot: error:")]
    assert len(errors) == 3
    assert "in another view. Cached: flip" in errors[0]
    assert "not among the 40 of digits that were cached" in errors[1]
    assert "build it with positions=True" in errors[2]


def test_flags_that_do_not_fit_are_one_line(recipe, tmp_path, capsys):
    there = ("--output_dir", tmp_path / "c")
    refused = {
        "pass --output_dir FOLDER": (),
        "unknown dtype 'float8'": (*there, "--dtype", "float8"),
        '--epochs takes a number of epochs or "all"': (*there, "--epochs", "some"),
        "--epoch is no setting": (*there, "--epoch", "3"),
        "a cache is of one teacher, and 2 are given": (*there, "--teacher", "a/b", "c/d"),
        "is no layer of the teacher": (*there, "--layers", "vit.layers.7"),
    }
    for message, arguments in refused.items():
        assert _run("cache", recipe, *arguments) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-reprot: error:")]
        assert message in line, line
    assert _run("cache", "--help") == 0
    assert "--shard_rows" in capsys.readouterr().out


def test_the_options_are_taken_apart(tmp_path):
    flags = [
        "--student",
        "resnet10t",
        "--dataset",
        "digits",
        "--output_dir",
        str(tmp_path),
        "--layers",
        "last",
        "stage:1",
    ]
    recipe, config, options = parse_cache([*flags, "--positions", "--epochs", "3", "--seed", "5"])
    assert options == CacheOptions(layers=["last", "stage:1"], positions=True, epochs="3")
    assert (recipe.student, config.seed) == ("resnet10t", 5)
