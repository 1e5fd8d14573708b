"""What makes a student, settings or a batch size anew: `model_init`, a search, a batch that does not fit."""

import pytest
import torch

from hf_reprot.training.terms.transport import TransportTerm
from tests.toy_models import Images, resnet, vit
from tests.training.runs import make_trainer, training_logs, weights_of


def with_dropout():
    student = vit()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    return student


def made_by_init(folder, **settings):
    return make_trainer(folder, model=False, trainer={"model_init": with_dropout}, **settings)


def test_a_student_from_model_init_is_trained_like_any_other(tmp_path):
    """Its hooks are registered anew, and building them draws no random numbers."""
    torch.manual_seed(42)
    given = make_trainer(tmp_path, model=with_dropout(), plan_momentum=0.9)
    torch.manual_seed(42)
    with_dropout()  # what model_init draws before training
    given.train()
    made = made_by_init(tmp_path, plan_momentum=0.9)
    made.train()
    assert training_logs(made) == training_logs(given)
    for name, value in weights_of(given.model).items():
        assert torch.equal(value, made.model.state_dict()[name]), name
    made.train()  # a new student again, tapped once
    assert training_logs(made)[-2:] == training_logs(given)


def test_building_the_objective_draws_no_random_numbers(tmp_path):
    trainer = make_trainer(tmp_path, teacher=resnet(seed=1), kd_weight=1.0, l2sp_weight=0.1)
    before = torch.get_rng_state()
    trainer._build_objective()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_search_with_optuna(tmp_path):
    """Each trial trains a new student with the trial's own settings, also with those that the loss is built from."""
    optuna = pytest.importorskip("optuna")
    trainer = made_by_init(
        tmp_path, eval_data=Images(8, seed=3), eval_strategy="steps", eval_steps=1, per_device_train_batch_size=16
    )
    built, trained = [], []
    forward = type(trainer).compute_loss

    def watched(model, inputs, *args, **kwargs):
        if model.training:
            transport = trainer.transfer.find(TransportTerm).loss
            built.append((trainer.args.ot_weight, transport.method, transport.relative_epsilon))
            trained.append(trainer.transfer.student_taps.model is model)
        return forward(trainer, model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    choices = [(1.0, "sinkhorn", 0.05), (2.0, "random", 0.01), (4.0, "proximal", 0.2)]

    def space(trial):
        weight, method, epsilon = choices[trial.number]
        trial.suggest_float("ot_weight", weight, weight)
        return {"ot_weight": weight, "ot_method": method, "ot_relative_epsilon": epsilon}

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    best = trainer.hyperparameter_search(hp_space=space, n_trials=3, direction="minimize", backend="optuna")
    assert built == [choice for choice in choices for _ in range(2)]
    assert all(trained)
    assert best.objective > 0
    assert len(trainer.transfer.student_taps._handles) == len(made_by_init(tmp_path).transfer.student_taps._handles)
    trainer.train()  # the trainer is of use afterwards
    assert all(trained)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_batch_that_does_not_fit_is_made_smaller(tmp_path, momentum):
    trainer = make_trainer(
        tmp_path,
        auto_find_batch_size=True,
        per_device_train_batch_size=32,
        plan_momentum=momentum,
        logging_steps=2,
        max_steps=4,
    )
    forward, sizes = trainer.compute_loss, []

    def small_memory(model, inputs, *args, **kwargs):
        sizes.append(len(inputs["labels"]))
        loss = forward(model, inputs, *args, **kwargs)
        if len(sizes) == 2 and sizes[-1] == 32:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return loss

    trainer.compute_loss = small_memory
    trainer.train()
    assert max(sizes[2:]) < 32
    logs = training_logs(trainer)
    assert [entry["step"] for entry in logs] == [2, 4]
    # what the larger batch left behind is in no line of the log
    for entry in logs:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + entry["ot_loss"], rel=1e-4)


def test_a_lora_student_saves_and_resumes_as_peft_does(tmp_path):
    peft = pytest.importorskip("peft")

    def student():
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], r=2)
        return peft.get_peft_model(vit(), config)

    settings = {
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "optim": "adamw_torch",
        "load_best_model_at_end": True,
        "layer_pairs": ["vit.layers.1=resnet.encoder.stages.1"],
    }
    data = {"eval_data": Images(8, seed=3)}
    whole = make_trainer(tmp_path / "whole", model=student(), **data, **settings)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    resumed = make_trainer(tmp_path / "resumed", model=student(), **data, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert training_logs(resumed) == training_logs(whole)
    for name, value in weights_of(whole.model).items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    loaded = peft.PeftModel.from_pretrained(vit(), checkpoint)
    assert any("lora_B" in name and value.abs().sum() > 0 for name, value in loaded.state_dict().items())
    (checkpoint / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors is damaged"):
        make_trainer(tmp_path, model=student(), **data, **settings).train(resume_from_checkpoint=str(checkpoint))
