"""A run that was stopped and resumed ends where an uninterrupted one does, to the last bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import EarlyStoppingCallback, TrainerCallback

from hf_reprot.training.checkpoint_files import check_whole
from tests.toy_models import Images, resnet, vit
from tests.training.families import FAMILIES
from tests.training.runs import make_trainer, training_logs, weights_of

RUN = {
    "max_steps": 7,
    "logging_steps": 2,
    "save_steps": 3,  # falls between two lines of the log
    "save_strategy": "steps",
    "optim": "adamw_torch",
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 1.0,
    "plan_momentum": 0.9,
    "ot_warmup_steps": 5,
    "kd_weight": 0.5,
    "l2sp_weight": 0.01,
}
TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss")


def without_times(logs):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in logs]


def assert_same_run(resumed, whole):
    assert without_times(resumed.state.log_history) == without_times(whole.state.log_history)
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def reshuffled(model):
    """The same model with other weights: whatever is not loaded shows."""
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_resumes_exactly(tmp_path, family):
    settings = {**RUN, "l2sp_weight": 0.0, "ot_positions": "pooled"}
    whole = make_trainer(tmp_path / "whole", model=FAMILIES[family](), **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", model=reshuffled(FAMILIES[family]()), **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert_same_run(resumed, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_with_the_best_model(tmp_path, family):
    best = {}

    trainer = make_trainer(
        tmp_path,
        model=FAMILIES[family](),
        eval_data=Images(16, seed=3),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        save_total_limit=1,
    )
    trainer.add_callback(_SpoilAfterStep2(best))
    trainer.train()
    assert trainer.state.best_global_step == 2
    for name, value in weights_of(trainer.model).items():
        assert torch.equal(value, best[name]), name
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


class _SpoilAfterStep2(TrainerCallback):
    """Keeps the weights that were saved at step 2 and makes all later ones worse."""

    def __init__(self, kept: dict[str, torch.Tensor]):
        self.kept = kept

    def on_save(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            self.kept.update(weights_of(model))
            reshuffled(model)


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """kill -9 after step 5, in the middle of the write of a checkpoint."""
    whole = make_trainer(tmp_path / "whole", **RUN)
    whole.train()
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.training.test_resume", str(tmp_path / "killed")]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    unfinished = tmp_path / "killed" / "checkpoint-6"
    assert unfinished.is_dir()
    assert not (unfinished / "trainer_state.json").exists()
    resumed = make_trainer(tmp_path / "killed", model=reshuffled(vit()), **{**RUN, "l2sp_weight": 0.0})
    with pytest.raises(ValueError, match=r"checkpoint-6 is damaged or unfinished: trainer_state\.json"):
        resumed.train(resume_from_checkpoint=str(unfinished))
    resumed = make_trainer(tmp_path / "killed", **RUN)
    resumed.train(resume_from_checkpoint=True)
    assert_same_run(resumed, whole)
    assert (unfinished / "trainer_state.json").exists()


def _die_in_the_middle(folder: str) -> None:
    trainer = make_trainer(Path(folder), **RUN)
    save = trainer._save_rng_state

    def stopped(output_dir):
        if trainer.state.global_step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        save(output_dir)

    trainer._save_rng_state = stopped
    trainer.train()


def test_a_line_of_the_log_spans_the_interruption(tmp_path):
    """Saved at step 3, logged at 2 and 4: the line at 4 holds step 3, which the resumed process has not seen."""
    whole = make_trainer(tmp_path, **{**RUN, "max_steps": 4})
    whole.train()
    state = load_file(tmp_path / "checkpoint-3" / "transfer_state.safetensors")
    assert state["window.last_logged"] == 2
    assert state["window.steps.ot_loss"] == 1
    resumed = make_trainer(tmp_path, **{**RUN, "max_steps": 4})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert training_logs(resumed) == training_logs(whole)
    step4 = 2 * training_logs(whole)[1]["loss"] - state["window.loss"].item()
    assert resumed._total_loss_scalar == pytest.approx(step4, rel=1e-4)  # of this call's steps alone


def test_a_run_at_its_end_stays_as_it_is(checkpoints, tmp_path):
    """The stock Trainer makes one step more."""
    trainer = make_trainer(tmp_path, model=reshuffled(vit()))
    trainer.train(resume_from_checkpoint=str(checkpoints / "checkpoint-2"))
    assert trainer.state.global_step == 2
    assert len(training_logs(trainer)) == 2
    saved = vit().from_pretrained(checkpoints / "checkpoint-2")
    for name, value in saved.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_early_stopping_and_a_limit_of_checkpoints(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_data=Images(16, seed=3),
        max_steps=12,
        learning_rate=0.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        trainer={"callbacks": [EarlyStoppingCallback(early_stopping_patience=3)]},
    )
    trainer.train()
    assert trainer.state.global_step == 4
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]


def test_weights_that_do_not_fit_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    path = tmp_path / "checkpoint-2" / "model.safetensors"
    weights = load_file(path)
    dropped = next(name for name in weights if name.endswith("bias"))
    save_file({k: v for k, v in weights.items() if k != dropped}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="missing keys"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    save_file(weights | {"more": torch.zeros(1)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="unexpected keys"):
        make_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    with pytest.raises(ValueError, match="do not fit"):
        make_trainer(tmp_path, model=vit(width=32)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_start_is_refused_where_l2sp_pulls_to_it(tmp_path):
    settings = {"l2sp_weight": 0.1, "save_strategy": "steps", "save_steps": 2}
    make_trainer(tmp_path, **settings).train()
    with pytest.raises(ValueError, match="started from others"):
        make_trainer(tmp_path, model=vit(seed=5), **settings).train(resume_from_checkpoint=True)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def _garbage(path):
    path.write_bytes(b"this is no checkpoint" * 10)


def _empty(path):
    path.write_bytes(b"")


def _gone(path):
    path.unlink()


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("damage", [_cut, _garbage, _empty, _gone])
@pytest.mark.parametrize("name", [*FILES, "transfer_state.safetensors"])
def test_a_damaged_file_is_named(checkpoints, tmp_path, name, damage):
    folder = shutil.copytree(checkpoints / "checkpoint-2", tmp_path / "checkpoint-2")
    check_whole(folder)
    damage(folder / name)
    with pytest.raises(ValueError, match="weights are missing" if (damage, name) == (_gone, FILES[0]) else name):
        check_whole(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors"])
def test_damaged_checkpoints_are_passed_over(checkpoints, tmp_path, name, caplog):
    folder = shutil.copytree(checkpoints, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint-1").iterdir()}
    _cut(folder / "checkpoint-2" / name)
    trainer = make_trainer(folder, max_steps=3)
    with pytest.raises(ValueError, match=name):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-2 is damaged" in caplog.text
    assert [entry["step"] for entry in training_logs(trainer)] == [1, 2, 3]
    assert {path.name: path.read_bytes() for path in (folder / "checkpoint-1").iterdir()} == before


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    make_trainer(folder, save_strategy="steps", save_steps=1).train()
    return folder


def test_nothing_to_resume_from(tmp_path):
    trainer = make_trainer(tmp_path)
    for last in (True, "true"):  # the latter from a command line
        with pytest.raises(ValueError, match="No valid checkpoint"):
            trainer.train(resume_from_checkpoint=last)
    with pytest.raises(ValueError, match="there is no checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "nothing"))


def test_a_run_with_nothing_whole_to_go_on_from_starts_anew(checkpoints, tmp_path, caplog):
    """Stopped while it wrote its first checkpoint: a loop that restarts it must not stop for good."""
    folder = tmp_path / "run"
    shutil.copytree(checkpoints / "checkpoint-1", folder / "checkpoint-1")
    _gone(folder / "checkpoint-1" / "trainer_state.json")
    _cut(folder / "checkpoint-1" / "model.safetensors")
    trainer = make_trainer(folder, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train(resume_from_checkpoint=True)
    assert "checkpoint-1 is damaged" in caplog.text
    assert "is whole: the run starts anew" in caplog.text
    assert [entry["step"] for entry in training_logs(trainer)] == [1, 2]
    for number in (1, 2):
        check_whole(folder / f"checkpoint-{number}")
    again = make_trainer(folder, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in training_logs(again)] == [1, 2, 3]


def test_a_checkpoint_holds_no_teacher_and_no_pickle_of_settings(checkpoints):
    names = sorted(path.name for path in (checkpoints / "checkpoint-2").iterdir())
    assert "training_args.bin" not in names
    student = sum(p.numel() for p in vit().parameters())
    teacher = {name for name, _ in resnet().named_parameters()}
    saved = load_file(checkpoints / "checkpoint-2" / "model.safetensors")
    assert sum(t.numel() for t in saved.values()) == student
    assert not teacher & set(saved)
    config = json.loads((checkpoints / "checkpoint-2" / "config.json").read_text())
    assert config["model_type"] == "vit"


if __name__ == "__main__":
    _die_in_the_middle(sys.argv[1])
