import math

import pytest
import torch

from hf_reprot.losses import LogitDistillation


def test_equal_logits_give_zero():
    logits = torch.randn(5, 7)
    out = LogitDistillation(3.0)(logits, logits + 2.0)  # a softmax does not see a common offset
    assert out.loss.item() == pytest.approx(0.0, abs=1e-6)
    assert out.logs["kd_agreement"].item() == 1.0


def test_value_by_hand():
    # Two classes, T = 2: p_t = (3/4, 1/4), p_s = (1/2, 1/2); KL(t|s) = log 2 - H(3/4)
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    student = torch.zeros(1, 2)
    kl = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert LogitDistillation(2.0)(student, teacher).loss.item() == pytest.approx(4 * kl, rel=1e-6)


def test_gradient_flows_to_the_student_only():
    student = torch.randn(4, 3, requires_grad=True)
    teacher = torch.randn(4, 3, requires_grad=True)
    LogitDistillation()(student, teacher).loss.backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_half_precision_is_computed_in_float32():
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    exact = LogitDistillation()(student, teacher).loss
    half = LogitDistillation()(student.bfloat16(), teacher.bfloat16()).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=0.05)


def test_other_classes_are_an_error():
    with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 5\)"):
        LogitDistillation()(torch.zeros(4, 3), torch.zeros(4, 5))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_makes_no_sense(temperature):
    with pytest.raises(ValueError, match="temperature"):
        LogitDistillation(temperature)
