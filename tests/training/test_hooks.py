"""The student's hooks: there in training, compiled or not, and gone after it."""

import pickle
import subprocess
import sys

import pytest
import torch
from transformers import TrainerCallback

from tests.toy_models import Images, batch, resnet, timm_vit, vit
from tests.training.runs import make_trainer, training_logs


def hooks_of(model):
    return [
        hook
        for module in model.modules()
        for kind in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        for hook in kind.values()
    ]


class Stop(TrainerCallback):
    """Ends a run with an error, and looks at the student before."""

    def __init__(self):
        self.hooks, self.pickled = 0, b""

    def on_step_end(self, args, state, control, model, **kwargs):
        self.hooks, self.pickled = len(hooks_of(model)), pickle.dumps(model)
        raise KeyboardInterrupt


def read_without_this_package(path):
    code = (
        "import sys; sys.modules['hf_reprot'] = None\nimport torch\n"
        f"model = torch.load({str(path)!r}, weights_only=False)\n"
        "print(model(torch.zeros(1, 3, 16, 16)).logits.shape)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_a_trained_student_has_none(tmp_path):
    student, teacher = vit(), resnet(seed=1)
    trainer = make_trainer(tmp_path, model=student, teacher=teacher, layer_pairs=["last", "stages"])
    assert hooks_of(student) == hooks_of(teacher) == []
    trainer.train()
    assert hooks_of(student) == hooks_of(teacher) == []
    assert training_logs(trainer)[-1]["ot_loss"] > 0
    trainer.train()
    assert training_logs(trainer)[-1]["ot_loss"] > 0
    torch.save(trainer.model, tmp_path / "student.pt")
    read = read_without_this_package(tmp_path / "student.pt")
    assert "torch.Size([1, 3])" in read.stdout, read.stderr[-2000:]


def test_a_run_that_fails_leaves_none_and_may_be_pickled_in_between(tmp_path):
    student, stop = vit(), Stop()
    trainer = make_trainer(tmp_path, model=student, trainer={"callbacks": [stop]})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert stop.hooks > 0
    assert hooks_of(student) == []
    assert b"hf_reprot" not in stop.pickled
    copy = pickle.loads(stop.pickled)
    torch.testing.assert_close(copy.eval()(**batch(2)).logits, student.eval()(**batch(2)).logits)


def test_layers_that_change_leave_none(tmp_path):
    student = vit(layers=3)
    trainer = make_trainer(tmp_path, model=student, layer_pairs="auto", layer_refresh_steps=1, layer_samples=16)
    trainer.train()
    assert hooks_of(student) == []


def test_a_loss_outside_of_a_run_hangs_its_own(tmp_path):
    trainer = make_trainer(tmp_path)
    loss = trainer.compute_loss(trainer.model.train(), trainer._prepare_inputs(batch(8)))
    loss.backward()
    assert hooks_of(trainer.model) == []
    assert trainer.model.vit.layers[0].layernorm_before.weight.grad.abs().sum() > 0


def test_runs_in_one_process_compile_for_their_own_hooks(tmp_path):
    """Code compiled for an instance without hooks is not lent to one with them."""
    for i, settings in enumerate([{"ot_weight": 0.0}, {"ot_weight": 1.0}, {"layer_pairs": "stages", "ot_weight": 1.0}]):
        trainer = make_trainer(
            tmp_path,
            model=resnet(seed=i),
            torch_compile=True,
            torch_compile_backend="eager",
            max_steps=1,
            **settings,
        )
        trainer.train()
        assert ("ot_loss" in training_logs(trainer)[0]) == (settings["ot_weight"] > 0)
    eager = make_trainer(tmp_path, model=resnet(seed=2), max_steps=1, layer_pairs="stages", ot_weight=1.0)
    eager.train()
    assert training_logs(trainer)[0]["ot_loss"] == pytest.approx(training_logs(eager)[0]["ot_loss"], rel=1e-4)


@pytest.mark.parametrize("make", [resnet, lambda: timm_vit().timm_model])
def test_a_student_that_the_caller_compiled(tmp_path, make):
    torch.manual_seed(0)
    first, calls = make(), []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward

    with torch.no_grad():  # compiled without hooks
        torch.compile(make(), backend="eager")(batch(2)["pixel_values"])
    plain = make_trainer(tmp_path / "plain", model=make(), max_steps=1)
    plain.train()
    first.load_state_dict(make().state_dict())
    trainer = make_trainer(
        tmp_path / "compiled",
        model=torch.compile(first, backend=backend),
        eval_data=Images(8),
        max_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    assert calls  # it did run compiled
    assert training_logs(trainer)[0]["loss"] == pytest.approx(training_logs(plain)[0]["loss"], rel=1e-4)
    assert trainer.evaluate()["eval_loss"] > 0
    assert not any("_orig_mod" in name for name in trainer.model.state_dict())
    assert (tmp_path / "compiled" / "checkpoint-1" / "model.safetensors").is_file()
    assert hooks_of(trainer.model) == []
