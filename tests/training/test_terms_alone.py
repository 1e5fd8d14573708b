"""Each term of the loss on its own, and batches in which one has nothing to say."""

import pytest
import torch

from hf_reprot import OTTransferTrainer
from hf_reprot.losses import RepresentationTransport
from hf_reprot.training.checks import check_batch_size
from tests.toy_models import Images, vit
from tests.training.runs import make_config, make_trainer, training_logs


@pytest.mark.parametrize(
    "term", ["ot_weight", "kd_weight", "l2sp_weight", "delta_weight", "bss_weight", "feature_weight"]
)
@pytest.mark.parametrize("labelled", [True, False])
def test_any_term_may_stand_alone(tmp_path, term, labelled):
    nothing = {"task_weight": 0.0, "ot_weight": 0.0}
    settings = nothing | {term: 0.5} | ({"feature_loss": "cka"} if term == "feature_weight" else {})
    teacher = vit(seed=0 if term == "delta_weight" else 1)  # DELTA's student starts as a copy
    trainer = make_trainer(tmp_path, model=vit(), teacher=teacher, data=Images(labelled=labelled), **settings)
    trainer.train()
    logs = training_logs(trainer)[0]
    logged = {
        "ot_weight": "ot_loss",
        "kd_weight": "kd_loss",
        "l2sp_weight": "l2sp_loss",
        "delta_weight": "delta_loss",
        "bss_weight": "bss_loss",
        "feature_weight": "feature_loss",
    }[term]
    assert logs["loss"] == pytest.approx(0.5 * logs[logged], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("settings", [{"bss_weight": 1.0}, {"l2sp_weight": 1.0}])
def test_terms_that_read_no_teacher_need_none(tmp_path, settings):
    args = make_config(tmp_path, task_weight=0.0, ot_weight=0.0, **settings)
    trainer = OTTransferTrainer(model=vit(), args=args, train_dataset=Images(labelled=False))
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("settings", [{}, {"dead_neurons": "ignore"}, {"debiased": True}])
def test_two_samples_have_no_gradient(settings):
    """Standardized over two samples, a neuron is +1 or -1 whatever it does."""

    def gradient(samples, **more):
        generator = torch.Generator().manual_seed(0)
        student = torch.randn(samples, 24, generator=generator).requires_grad_()
        teacher = torch.randn(samples, 40, generator=generator)
        RepresentationTransport(**settings, **more)(student, teacher).loss.backward()
        return student.grad.norm().item()

    assert gradient(2) < 1e-4
    assert gradient(4) > 1e-2
    assert gradient(2, standardize=False) > 1e-2


def test_two_samples_a_batch_are_warned_about(tmp_path, caplog):
    def said(samples=2, **settings):
        caplog.clear()
        check_batch_size(make_config(tmp_path, ot_weight=1.0, **settings), samples, [(24, 12)])
        return "With 2 samples a step" in caplog.text

    assert said()
    assert said(ot_method="random")
    assert not said(3)
    assert not said(ot_standardize=False)
    assert not said(ot_positions="all")
