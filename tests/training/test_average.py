"""The moving average of the student's weights: its values, what is evaluated and saved, and resuming."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import TrainerCallback

from hf_reprot.training.average import StudentAverage
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, weights_of

RUN = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, "ema_decay": 0.8, "learning_rate": 0.05}


class _Trained(TrainerCallback):
    """The weights after each step."""

    def __init__(self):
        self.seen = []

    def on_optimizer_step(self, args, state, control, model, **kwargs):
        self.seen.append(weights_of(model))


def averaged(steps, decay):
    """By the definition: the weights after the first step, then d * average + (1 - d) * weights; not of counters."""
    found = dict(steps[0])
    for weights in steps[1:]:
        for name, value in weights.items():
            mixed = decay * found[name] + (1 - decay) * value if value.is_floating_point() else value
            found[name] = mixed
    return found


def lora():
    torch.manual_seed(0)
    return get_peft_model(vit(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))


def watched(folder, model=resnet, **settings):
    trainer = make_trainer(folder, model=model(), teacher=vit(seed=2), **{**RUN, **settings})
    watch = _Trained()
    trainer.add_callback(watch)
    return trainer, watch.seen


def test_the_average_is_saved_evaluated_and_what_is_left(tmp_path):
    trainer, steps = watched(tmp_path, eval_data=Images(8, seed=3), eval_strategy="steps", eval_steps=4)
    trainer.train()
    assert_close(weights_of(trainer.model), averaged(steps, 0.8), atol=1e-6, rtol=1e-5)
    assert not torch.equal(weights_of(trainer.model)["classifier.1.weight"], steps[-1]["classifier.1.weight"])
    saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    assert_close(saved, averaged(steps[:4], 0.8), atol=1e-6, rtol=1e-5)  # batch normalisation's statistics, too
    found = next(e["eval_loss"] for e in trainer.state.log_history if e.get("step") == 4 and "eval_loss" in e)
    other = resnet()
    other.load_state_dict(saved)
    again = make_trainer(tmp_path / "again", model=other, teacher=vit(seed=2), eval_data=Images(8, seed=3))
    assert found == pytest.approx(again.evaluate()["eval_loss"], rel=1e-4)
    trainer.save_model(str(tmp_path / "final"))
    assert_close(load_file(tmp_path / "final" / "model.safetensors"), weights_of(trainer.model), atol=0, rtol=0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])
    record = json.loads((tmp_path / "final" / "transfer.json").read_text())
    assert record["transfer"]["ema_decay"] == 0.8
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("model", [resnet, lora])
def test_resumes_to_the_last_bit(tmp_path, model):
    whole, _ = watched(tmp_path / "whole", model)
    whole.train()
    resumed, _ = watched(tmp_path / "resumed", model)
    with torch.no_grad():
        for parameter in (p for p in resumed.model.parameters() if p.requires_grad):
            parameter.add_(1.0)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, weights_of(resumed.model)[name]), name
    last = [
        load_file(Path(tmp_path, run, "checkpoint-6", "transfer_state.safetensors")) for run in ("whole", "resumed")
    ]
    assert {name for name in last[0] if name.startswith("ema.")}
    assert all(torch.equal(value, last[1][name]) for name, value in last[0].items() if name.startswith("ema."))


def test_resuming_with_and_without(tmp_path, caplog):
    whole, steps = watched(tmp_path / "whole", max_steps=2)
    whole.train()
    without, later = watched(tmp_path / "a", ema_decay=None, max_steps=4)
    without.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert "this one goes on without" in caplog.text
    plain, seen = watched(tmp_path / "plain", ema_decay=None, max_steps=4)
    plain.train()
    assert_close(seen[1], steps[1], atol=0, rtol=0)  # the average changes nothing of what is trained
    assert_close(later[-1], seen[-1], atol=0, rtol=0)  # and it is the trained weights that go on
    begun, after = watched(tmp_path / "b", max_steps=4)
    begun.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    assert "holds no average" in caplog.text
    assert_close(weights_of(begun.model), averaged(after, 0.8), atol=1e-6, rtol=1e-5)


def test_the_best_checkpoint_is_its_average(tmp_path):
    trainer, steps = watched(
        tmp_path, eval_data=Images(8, seed=3), eval_strategy="steps", eval_steps=2, load_best_model_at_end=True
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert_close(weights_of(trainer.model), averaged(steps[:best], 0.8), atol=1e-6, rtol=1e-5)


def test_half_precision_and_frozen_weights():
    student = torch.nn.Linear(4, 4).to(torch.bfloat16)
    student.bias.requires_grad_(False)
    average = StudentAverage(0.999, lambda: student)
    average.start()
    with torch.no_grad():
        student.weight.zero_()
        average.update()
        student.weight.fill_(1.0)
    for _ in range(10):
        average.update()
    state = average.state_dict()
    assert_close(state["ema.average.weight"], torch.full((4, 4), 1 - 0.999**10))  # in bfloat16 it would move in jumps
    assert state["ema.trained.weight"].dtype == torch.bfloat16
    assert not any("bias" in name for name in state)
    with pytest.raises(ValueError, match="of other weights than those that are trained now"):
        StudentAverage(0.999, lambda: torch.nn.Linear(4, 4)).load_state_dict(state)


def test_values_that_it_cannot_have(tmp_path):
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"ema_decay must lie in \[0, 1\), such as 0\.999"):
            make_trainer(tmp_path, ema_decay=decay)
