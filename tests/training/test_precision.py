"""Half precision, activation checkpointing and compilation change how a loss is computed, not which one."""

import copy
import math

import pytest
import torch

from hf_reprot.losses import RepresentationTransport
from tests.toy_models import Images, resnet, vit
from tests.training.runs import CHECKPOINTING, make_trainer, training_logs, weights_of

TERMS = {"kd_weight": 0.5, "max_steps": 3, "per_device_train_batch_size": 16}


def one_run(folder, **settings):
    trainer = make_trainer(folder, **{**TERMS, **settings})
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return one_run(tmp_path_factory.mktemp("plain"))


def assert_same_run(ours, theirs, rel):
    for mine, other in zip(training_logs(ours), training_logs(theirs), strict=True):
        for name in ("loss", "ot_loss", "ot_cost", "kd_loss", "task_loss"):
            assert mine[name] == pytest.approx(other[name], rel=rel), name


@pytest.mark.parametrize(
    "settings", [{}, {"ot_positions": "all", "layer_pairs": ["vit.layers.0=resnet.encoder.stages.0"]}]
)
def test_bf16_is_within_a_percent_and_transport_in_float32(tmp_path, monkeypatch, settings):
    dtypes, seen = set(), set()
    forward, solve = RepresentationTransport.forward_pairs, RepresentationTransport._solve_one

    def watched(self, pairs, **kwargs):
        seen.update(tensor.dtype for pair in pairs for tensor in pair)
        return forward(self, pairs, **kwargs)

    def watched_solve(self, matrix, *args):
        assert not torch.is_autocast_enabled("cpu")
        result = solve(self, matrix, *args)
        dtypes.update((matrix.dtype, result.plan.dtype, result.value.dtype))
        return result

    exact = one_run(tmp_path, max_steps=1, **settings)
    monkeypatch.setattr(RepresentationTransport, "forward_pairs", watched)
    monkeypatch.setattr(RepresentationTransport, "_solve_one", watched_solve)
    half = one_run(tmp_path, max_steps=1, bf16=True, **settings)
    if settings:  # what goes into a head comes out of a normalisation, which autocast keeps in float32
        assert torch.bfloat16 in seen
    assert dtypes == {torch.float32}
    assert_same_run(half, exact, rel=0.01)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


@pytest.mark.parametrize("overflow", [False, True])
def test_fp16_and_loss_scaling(tmp_path, monkeypatch, overflow):
    """accelerate refuses float16 on CPUs, so the scaler is put in by hand, as accelerate does on a GPU."""
    exact = one_run(tmp_path, max_steps=1)
    trainer = make_trainer(tmp_path, **{**TERMS, "max_steps": 2})
    accelerator = trainer.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120 if overflow else 2.0**10)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp = True
    try:
        before = weights_of(trainer.model)
        trainer.train()
    finally:
        accelerator.state._mixed_precision = "no"
    logs = training_logs(trainer)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    if overflow:
        assert accelerator.scaler.get_scale() < 2.0**120
        assert all(torch.equal(value, trainer.model.state_dict()[name]) for name, value in before.items())
    else:
        assert logs[0]["ot_loss"] == pytest.approx(training_logs(exact)[0]["ot_loss"], rel=0.01)
        assert logs[0]["loss"] == pytest.approx(training_logs(exact)[0]["loss"], rel=0.01)
        assert any(not torch.equal(value, trainer.model.state_dict()[name]) for name, value in before.items())


def test_activation_checkpointing_changes_nothing(tmp_path, plain):
    checkpointed = one_run(tmp_path, **{CHECKPOINTING: True})
    assert getattr(checkpointed.model, f"is_{CHECKPOINTING}")
    assert_same_run(checkpointed, plain, rel=1e-6)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(checkpointed.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_that_cuts_off_gradients_is_refused(tmp_path):
    """The student's first layer gets pixels, which need no gradient: reentrant checkpointing then records without."""
    student = vit()
    for parameter in student.vit.embeddings.parameters():
        parameter.requires_grad_(False)
    trainer = make_trainer(
        tmp_path,
        model=student,
        layer_pairs=["vit.layers.0=resnet.encoder.stages.0"],
        **{CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": {"use_reentrant": True}},
    )
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        trainer.train()


@pytest.mark.slow
def test_compiled_student(tmp_path, plain):
    compiled = one_run(
        tmp_path, torch_compile=True, torch_compile_backend="aot_eager", save_strategy="steps", save_steps=2
    )
    assert type(compiled.model_wrapped).__name__ == "OptimizedModule"
    assert_same_run(compiled, plain, rel=1e-5)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    resumed = make_trainer(tmp_path, **TERMS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same_run(resumed, plain, rel=1e-5)


def test_data_parallel_is_refused(tmp_path, monkeypatch):
    from hf_reprot import OTTransferConfig

    monkeypatch.setattr(OTTransferConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match=r"2 GPUs .* nn\.DataParallel.*torchrun --nproc_per_node 2"):
        make_trainer(tmp_path)


def test_a_teacher_in_another_precision(tmp_path):
    exact = one_run(tmp_path, max_steps=1)
    teacher = copy.deepcopy(resnet(seed=1)).to(torch.bfloat16)
    half = one_run(tmp_path, max_steps=1, teacher=teacher)
    assert next(teacher.parameters()).dtype == torch.bfloat16
    loss = training_logs(half)[0]["ot_loss"]
    assert math.isfinite(loss)
    assert loss == pytest.approx(training_logs(exact)[0]["ot_loss"], rel=0.02)


def test_a_student_in_bf16_all_through(tmp_path):
    student = vit().to(torch.bfloat16)

    class Half(Images):
        def __getitem__(self, index):
            row = super().__getitem__(index)
            return row | {"pixel_values": row["pixel_values"].to(torch.bfloat16)}

    trainer = one_run(tmp_path, model=student, data=Half(), student_dtype="auto")
    assert all(p.dtype == torch.bfloat16 and torch.isfinite(p).all() for p in student.parameters())
    exact = one_run(tmp_path, max_steps=1)
    assert training_logs(trainer)[0]["ot_loss"] == pytest.approx(training_logs(exact)[0]["ot_loss"], rel=0.02)
