"""Recipes from strangers: data of bounded size, with one clear line for whatever else stands in them."""

import json
import os
import re
import zipfile
from pathlib import Path

import pytest
import yaml
from PIL import Image

from hf_reprot import OTTransferConfig
from hf_reprot.commands.train import parse_recipe, run_recipe
from hf_reprot.settings.parsing import legal_names
from hf_reprot.settings.recipe_file import DEEPEST, LARGEST, read_recipe_file

BASE = "student: resnet10t\ndataset: digits\noutput_dir: out\n"
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.fixture
def write(tmp_path):
    def write(text):
        file = tmp_path / "run.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "repeats a part of itself by a reference (*a0)"),
        (MERGES, "repeats a part of itself by a reference (*a0)"),
        ("a: &a [*a]\n", "repeats a part of itself by a reference (*a)"),
        (f"layer_pairs: {'[' * 100_000}", f"more than {DEEPEST} lists and mappings"),
        (f"layer_pairs: {'{a: ' * 100_000}", f"more than {DEEPEST} lists and mappings"),
        ("student: " + "x" * LARGEST, "larger than 1,000,000 bytes"),
        (b"student: \xff\xfe\n", "not text in UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "not text in UTF-8"),
        (b"student: \x00\n", "is not YAML"),
        ("student: [a\n", "is not YAML"),
        ("student: a\n---\nstudent: b\n", "is not YAML"),
        ("? [a, b]\n: c\n", "is not YAML"),
        ("", "must be a mapping of settings, got NoneType"),
        ("- student\n", "must be a mapping of settings, got list"),
        ("3\n", "must be a mapping of settings, got int"),
        ("otput_dir: x\n", "names 'otput_dir', which is no setting. Did you mean 'output_dir'?"),
        ("1: x\n", "names 1, which is no setting"),
        ("null: x\n", "names None, which is no setting"),
        (f"{'x' * 500}: x\n", "xxx..., which is no setting"),
        ("max_steps: [1]\n", "gives max_steps the value [1], and it takes a whole number"),
        ("max_steps: 1.5\n", "and it takes a whole number"),
        ("max_steps: true\n", "gives max_steps the value True, and it takes a whole number"),
        ("save_strategy: no\n", "gives save_strategy the value False, and it takes text (YAML reads off, no or false"),
        ("ot_weight: {a: 1}\n", "gives ot_weight the value {'a': 1}, and it takes a number"),
        ("output_dir: [out]\n", "gives output_dir the value ['out'], and it takes text or null"),
        ("teacher: [a, [b]]\n", "and it takes a list"),
        ("dataset: 3\n", "gives dataset the value 3, and it takes text or null"),
        ("seed: null\n", "gives seed the value None, and it takes a whole number"),
        ("seed: 2020-01-01\n", "gives seed the value datetime.date(2020, 1, 1), and it takes a whole number"),
        ("max_steps: much\n", "invalid int value: 'much'"),
        ("ddp_timeout: 1000000000000000000000\n", "cannot be used here"),
    ],
)
def test_what_is_refused_in_one_line(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_recipe([], write(text))
    assert len(str(raised.value)) < 600


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no endless file here")
def test_an_endless_file(tmp_path):
    with pytest.raises(ValueError, match="larger than"):
        parse_recipe([], "/dev/zero")
    for missing in (tmp_path, tmp_path / "no.yaml"):
        with pytest.raises(ValueError, match="cannot be read"):
            parse_recipe([], missing)


@pytest.mark.parametrize(
    ("text", "setting", "harm"),
    [
        ("trust_remote_code: true\n", "trust_remote_code", "runs code"),
        ("trust_remote_code: 'yes'\n", "trust_remote_code", "runs code"),
        ("teacher_model_init_kwargs: {trust_remote_code: true}\n", "trust_remote_code", "runs code"),
        ("teacher_model_init_kwargs: '{\"trust_remote_code\": true}'\n", "trust_remote_code", "runs code"),
        ("teacher_model_init_kwargs: {a: [{trust_remote_code: 1}]}\n", "trust_remote_code", "runs code"),
        ("teacher_model_init_kwargs: {cache_dir: ../elsewhere}\n", "cache_dir", "writes outside"),
        ('student_model_args: \'{"cache_dir": "/elsewhere"}\'\n', "cache_dir", "writes outside"),
    ],
)
def test_what_only_a_person_may_say(write, text, setting, harm):
    with pytest.raises(ValueError, match=f"sets {setting}, which {harm}.*on the command line"):
        parse_recipe([], write(BASE + text))


def test_a_person_may_say_it(write):
    file = write(BASE + "trust_remote_code: false\nteacher_model_init_kwargs: {trust_remote_code: false}\n")
    assert not parse_recipe([], file)[0].trust_remote_code
    asked = ["--trust_remote_code", "true", "--teacher_model_init_kwargs", '{"trust_remote_code": true}']
    recipe, config = parse_recipe(asked, file)
    assert recipe.trust_remote_code
    assert config.teacher_model_init_kwargs == {"trust_remote_code": True}


def test_what_is_read(write):
    file = write(
        BASE + "teacher: a/b@main\nlayer_pairs: {student: x, teacher: y}\nreport_to: none\nlearning_rate: 1\n"
        "save_strategy: 'no'\nfsdp: null\nstudent_model_args: {depth: 2}\nlr_scheduler_kwargs: {num_cycles: 2}\n"
        "resume_from_checkpoint: true\nmax_train_samples: null\not_epsilon: '0.5'\nlogging_steps: 5\n"
    )
    recipe, config = parse_recipe([], file)
    assert recipe.teacher == ["a/b@main"]
    assert json.loads(recipe.student_model_args) == {"depth": 2}
    assert config.layer_pairs == [{"student": "x", "teacher": "y"}]
    assert (config.learning_rate, config.ot_epsilon, config.logging_steps) == (1, 0.5, 5)
    assert config.save_strategy.value == "no"
    assert config.resume_from_checkpoint is True


@pytest.mark.parametrize("value", [{"a": [1]}, 10**30, [None]], ids=str)
def test_every_setting_with_a_value_of_another_kind(write, value):
    """One clear error or a legal run: nothing else, whatever the setting."""
    refused = 0
    for name in legal_names(OTTransferConfig):
        try:
            parse_recipe([], write(yaml.safe_dump({"student": "a", "dataset": "b", "output_dir": "c", name: value})))
        except (ValueError, TypeError, OSError):
            refused += 1
    assert refused > len(legal_names(OTTransferConfig)) / 2


def test_types_that_a_setting_may_have(write):
    """Text goes anywhere, since flags are text; nothing of the wrong kind does."""
    kinds = {"number": float | None, "names": list[str], "word": str | bool}
    file = write("number: 3\nnames: [a, b]\nword: off\n")
    assert read_recipe_file(file, kinds) == {"number": 3, "names": ["a", "b"], "word": False}
    for text in ("number: off\n", "names: [a, 1]\n", "names: {a: b}\n", "word: 3\n"):
        with pytest.raises(ValueError, match="and it takes"):
            read_recipe_file(write(text), kinds)


def test_nothing_is_written_outside_the_output_folder(tmp_path, monkeypatch, write):
    """Names that a recipe gives are no paths; links and archives among the images lead nowhere."""
    sandbox = tmp_path / "a" / "b" / "c"
    images = sandbox / "images"
    for i, label in enumerate(("cat", "cat", "dog", "dog")):
        (images / label).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(images / label / f"{i}.png")
    with zipfile.ZipFile(images / "dog" / "more.zip", "w") as archive:
        archive.writestr("../../escaped.png", "out")
    (tmp_path / "secret.txt").write_text("secret")
    (images / "dog" / "link").symlink_to(tmp_path)
    monkeypatch.chdir(sandbox)
    name = "../../../escaped"
    file = write(
        f"student: resnet10t\nimage_size: 32\ndataset: images\noutput_dir: out\not_weight: 0\nmax_steps: 1\n"
        f"run_name: {name}\nproject: {name}\nreport_to: tensorboard\nper_device_train_batch_size: 2\nuse_cpu: true\n"
        f"hub_model_id: {name}\nsave_strategy: steps\nsave_steps: 1\nmetric_for_best_model: {name}\n"
    )
    before = _everything(tmp_path)
    result = run_recipe(*parse_recipe([], file))
    written = _everything(tmp_path) - before
    assert any(path.name == "model.safetensors" for path in written)
    assert any(path.name.startswith("events.out.tfevents") for path in written)
    outside = [path for path in written if result.folder.resolve() not in (path, *path.parents)]
    assert outside == []


def _everything(folder):
    """Files and folders, without following links."""
    return {Path(place) / name for place, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: .inf\n", "gives learning_rate the value inf: it takes finite numbers"),
        ("num_train_epochs: -.inf\n", "gives num_train_epochs the value -inf"),
        ("ot_weight: .nan\n", "gives ot_weight the value nan"),
        ("teacher: [{id: a, weight: .inf}]\n", "gives teacher the value"),
        ("ot_weight: 1\nseed: 3\not_weight: 2\n", "gives ot_weight twice (line 6): keep one"),
        ("teacher: [{id: a, id: b}]\n", "gives id twice (line 4): keep one"),
        ("teacher: {<<: {id: a}, weight: 1}\n", "merges mappings (<<, line 4)"),
        (
            'teacher_model_init_kwargs: \'{"a": 1, "a": 2}\'\n',
            'gives teacher_model_init_kwargs JSON that is unclear: "a" stands twice in one object',
        ),
        ('teacher: [{id: a, classes: \'{"x": {"b": 1, "b": 1}}\'}]\n', '"b" stands twice in one object: keep one'),
        ("student_model_args: '{\"a\": Infinity}'\n", "Infinity is no number"),
        ("run_name: 2024-99-99\n", "holds a value that cannot be read"),
        ("hub_token: x\n", "holds a token of the Hub"),
    ],
)
def test_values_that_mean_nothing_and_names_that_stand_twice(write, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_recipe([], write(BASE + text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", ["lr_scheduler_kwargs", "student_model_args", "layer_pairs"])
@pytest.mark.parametrize("joined", [True, False])
def test_flags_are_read_as_a_recipe_is(write, flag, joined):
    given = '{"power": 1, "power": 2}'
    arguments = [f"--{flag}={given}"] if joined else [f"--{flag}", given]
    with pytest.raises(ValueError, match=f'--{flag} holds JSON that is unclear: "power" stands twice'):
        parse_recipe(arguments, write(BASE))


@pytest.mark.parametrize("token", ["hf_" + "Ab12" * 8, "hf_oauth_" + "Ab-1._" * 6, "api_org_" + "Ab12" * 8])
@pytest.mark.parametrize(
    "place",
    [
        *("hub_token: {}\n", "run_name: my {}\n", "{}: 1\n", "teacher: [{{id: a, token: {}}}]\n"),
        *('teacher_model_init_kwargs: \'{{"token": "{}"}}\'\n', "student: [{}\n", "ot_wight: {}\n"),
    ],
)
def test_a_token_in_a_recipe_is_refused_and_not_shown(write, place, token):
    with pytest.raises(ValueError) as caught:
        parse_recipe([], write(BASE + place.format(token)))
    assert token not in str(caught.value)
    if "[{}" not in place:
        assert "holds a token of the Hub: a recipe is shared" in str(caught.value)
