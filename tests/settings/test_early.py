"""Help, completion and mistakes without torch; and never a word against what the installed transformers accepts."""

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
from enum import Enum
from typing import get_args, get_type_hints

import pytest
from transformers import HfArgumentParser

from hf_reprot import OTTransferConfig
from hf_reprot.losses.baselines import FEATURE_LOSSES
from hf_reprot.settings import installed, parsing
from hf_reprot.settings.augmentation import AUGMENTATIONS
from hf_reprot.settings.groups import FIRST, help_groups
from hf_reprot.settings.installed import Unknown
from hf_reprot.settings.names import FEATURE_INPUTS
from hf_reprot.settings.recipe import Recipe
from hf_reprot.settings.transfer import TransferSettings

HEAVY = ["torch", "transformers", "datasets", "timm", "sklearn", "matplotlib", "numpy"]
QUICK = [
    (["--help"], 0, "train"),
    (["train", "--help"], 0, "--ot_weight"),
    (["cache", "--help"], 0, "--shard_rows"),
    (["push", "--help"], 0, "repository"),
    (["evaluate", "--help"], 0, "--neighbours"),
    (["demo", "--help"], 0, "--seeds"),
    (["demo", "--seeds", "0"], 2, "--seeds"),
    (["trian"], 2, "No such command"),
    (["train", "--ot_wieght", "1"], 2, "Did you mean '--ot_weight'?"),
    (["train", "--learning_rat", "1"], 2, "Did you mean '--learning_rate'?"),
    (["train", "--learning_rate", "fast"], 2, "invalid float value: 'fast'"),
    (["train", "--ot_method", "sinkhorm"], 2, "Did you mean 'sinkhorn'?"),
    (["train", "--eval_strategy", "step"], 2, "Did you mean 'steps'?"),
    (["train", "--plan_momentum", "2"], 2, "plan_momentum must lie in [0, 1), got 2.0"),
    (["train", "--augmentation", "flop", "--student", "a"], 2, "Did you mean 'flip'?"),
    (["train", "--output_dir", "x"], 2, "no student given"),
    (["train", "run.yaml"], 2, "Did you mean 'ot_weight'?"),
    (["train", "no.yaml"], 2, "cannot be read"),
    (["train", "--processes", "2", "--ot_wieght", "1"], 2, "Did you mean '--ot_weight'?"),
    (["cache", "--output_dir", "x", "--dtype", "float15"], 2, "Did you mean 'float16'?"),
    (["cache", "--output_dir", "x", "--ot_positionz", "all"], 2, "Did you mean '--ot_positions'?"),
    (["compare", "a", "b", "--dataset", "digits", "--layers", "block"], 2, "Did you mean 'blocks'?"),
    (["evaluate", "a", "--dataset", "digits", "--neighbours", "0"], 2, "--neighbours"),
]


def test_no_help_and_no_mistake_waits_for_torch(tmp_path):
    (tmp_path / "run.yaml").write_text("ot_wieght: 1\n")
    script = f"""
import contextlib, io, sys
from hf_reprot.cli import main
for arguments, code, said in {QUICK!r}:
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            main(arguments)
        raise AssertionError(arguments)
    except SystemExit as end:
        assert end.code == code, (arguments, end.code, text.getvalue())
    assert said in " ".join(text.getvalue().split()) or not code, (arguments, said, text.getvalue())
    assert not [m for m in {HEAVY!r} if m in sys.modules], arguments
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr


def test_the_trainer_brings_only_what_transformers_trainer_brings():
    script = """
import sys
from transformers import Trainer
before = set(sys.modules)
from hf_reprot import OTTransferTrainer
print(sorted({m.split(".")[0] for m in set(sys.modules) - before}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hf_reprot']"


# ---- what is read from transformers' source is what it has ----


def test_names_types_and_defaults_are_those_of_the_classes():
    early, real = parsing.early_config(), OTTransferConfig
    assert [f.name for f in dataclasses.fields(early)] == [f.name for f in dataclasses.fields(real) if f.init]
    hints, read = get_type_hints(real), get_type_hints(early)
    differ = {name for name in read if _shape(read[name]) != _shape(hints[name])}
    assert differ == {name for name in read if Unknown in (read[name], *get_args(read[name]))}
    assert len(differ) < 5
    members = {f.name: f for f in dataclasses.fields(real)}
    for field in dataclasses.fields(early):
        mine, theirs = (_default(f) for f in (field, members[field.name]))
        assert mine == theirs or mine is None, field.name
    assert {name: loss.input_kind for name, loss in FEATURE_LOSSES.items()} == FEATURE_INPUTS


def _shape(hint):
    """A type in which enumerations are what they list."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return tuple(member.value for member in hint)
    return (getattr(hint, "__origin__", None), *map(_shape, get_args(hint))) if get_args(hint) else hint


def _default(field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


@pytest.mark.parametrize("value", ["1", "0.5", "-1", "true", "no", "steps", "text", "{}", "cosine", "", "adamw_torch"])
def test_what_transformers_accepts_is_never_refused(value):
    """Every flag of every setting, with a value of every kind, before both parsers."""
    early, real = (
        parsing._reader(parser, config)
        for parser, config in (
            (installed.installed_parser(), parsing.early_config()),
            (HfArgumentParser, OTTransferConfig),
        )
    )
    flags = [flag for action in real._actions for flag in action.option_strings if flag not in ("-h", "--help")]
    assert len(flags) > 200
    refused = 0
    for flag in flags:
        with contextlib.suppress(ValueError, TypeError):
            _, rest = real.parse_known_args([flag, value])
            assert early.parse_known_args([flag, value])[1] == rest, flag
            continue
        refused += 1
        with pytest.raises((ValueError, TypeError)):
            real.parse_known_args([flag, value])
    assert refused < len(flags)


def test_a_transformers_of_another_day(tmp_path, monkeypatch):
    """Settings that this package has never heard of are legal; source that cannot be read lets everything through."""
    run = ["--student", "a", "--dataset", "b"]
    source = (installed._folder() / "training_args.py").read_text()
    for name in ("hf_argparser.py", "trainer_utils.py", "debug_utils.py"):
        (tmp_path / name).write_text((installed._folder() / name).read_text())
    monkeypatch.setattr(installed, "_folder", lambda: tmp_path)
    new = source.replace("\n    max_steps: int", "\n    brand_new: int = field(default=3)\n    max_steps: int", 1)
    for text, flag, legal in (
        (source, "--brand_new=4", False),
        (new, "--brand_new=4", True),
        (new, "--brand_new=x", False),
        (source.replace("class TrainingArguments:", "class TrainingArguments(Base):"), "--brand_new=x", True),
        ("class Something:\n    pass\n", "--brand_new=x", True),
        ("no Python", "--brand_new=x", True),
    ):
        (tmp_path / "training_args.py").write_text(text)
        parsing.early_config.cache_clear()
        try:
            if legal:
                parsing.check_early([*run, flag])
            else:
                with pytest.raises(ValueError, match="brand_new"):
                    parsing.check_early([*run, flag])
        finally:
            parsing.early_config.cache_clear()


def test_a_recipe_from_a_pipe_is_left_for_the_run(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("student: a\ndataset: b\n"), daemon=True)
    writer.start()
    parsing.check_early([], pipe)
    assert parsing.parse_settings(HfArgumentParser, OTTransferConfig, [], pipe)[0].student == "a"
    writer.join(10)


# ---- help and completion ----


def test_help_has_each_setting_once_and_ten_first():
    groups = help_groups(parsing.early_config())
    shown = [row.name for group in groups.values() for row in group]
    own = {f.name for kind in (Recipe, TransferSettings) for f in dataclasses.fields(kind)}
    assert sorted(shown) == sorted(own | set(FIRST))
    assert [row.name for row in next(iter(groups.values()))] == list(FIRST)
    assert len(FIRST) == 10
    assert all(row.help for group in groups.values() for row in group)
    assert next(row.default for row in groups["The first to know"] if row.name == "num_train_epochs") == 3.0


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("train --ot_me", ["--ot_method"]),
        ("train --ot-me", ["--ot_method"]),
        ("train --plan_momentum 0.9 --ot_method si", ["sinkhorn"]),
        ("train --eval_strategy s", ["steps"]),
        ("train --augmentation ", list(AUGMENTATIONS)),
        ("train --bf16 ", ["true", "false"]),
        ("cache --shard", ["--shard_rows"]),
        ("pu", ["push"]),
    ],
)
def test_a_shell_completes_settings_and_their_values(typed, found):
    words = ["hf-reprot", *typed.split(" ")]
    environment = {"_HF_REPROT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    script = "import sys; sys.argv = ['hf-reprot']; from hf_reprot.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"COMP_CWORD": str(len(words) - 1)},
        check=False,
    )
    assert done.stdout.split() == found, done.stderr
