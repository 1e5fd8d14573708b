"""Decoupled distillation of logits (hf.co/papers/2203.08679)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common import LossOutput
from ..distillation import IGNORED, weighted_mean


class DecoupledDistillation(nn.Module):
    """Distils apart how sure the teacher is of the label, and what it says about the other classes.

    With b = (p_label, 1 - p_label) the softened probabilities of the label and of all others, and q the softened
    probabilities among the others (a softmax without the label),

        loss = T^2 * (1/n) sum_k  alpha KL(b_teacher | b_student) + beta KL(q_teacher | q_student)

    Plain distillation is alpha = 1 and beta = the teacher's 1 - p_label, which silences the second part where the
    teacher is sure.

    Args:
        alpha: Weight of the first part.
        beta: Weight of the second part.
        temperature: T > 0, in units of logits.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student_logits | (n, classes) | yes |
        | teacher_logits | (n, classes) | no |
        | labels | (n,), integers; samples with -100 are left out, as cross-entropy leaves them out | no |
        | weights (optional) | (n,), factors of the samples' losses | no |

    Requirements: both models answer the same question with at least 2 classes, and the samples have labels.

    Returns: `LossOutput` with `loss` and, in `logs`, kd_agreement (share of samples with the same first answer) and the
    two parts without their weights, kd_target and kd_others.

    Relations: `LogitDistillation` needs no labels.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import DecoupledDistillation
        >>> dkd = DecoupledDistillation()
        >>> out = dkd(torch.zeros(4, 3, requires_grad=True), torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
        >>> out.loss.backward()

    References: Zhao, Cui, Song, Qiu, Liang: "Decoupled Knowledge Distillation", CVPR 2022, equation 7, with the
    defaults of the authors' code. Their warm-up of the weight over 20 epochs is left out.
    """

    citation = """@inproceedings{zhao2022decoupled,
  title={Decoupled Knowledge Distillation},
  author={Zhao, Borui and Cui, Quan and Song, Renjie and Qiu, Yiyu and Liang, Jiajun},
  booktitle={CVPR},
  year={2022}
}"""

    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0):
        super().__init__()
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be a finite number at least 0, got {weight}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        self.alpha, self.beta, self.temperature = float(alpha), float(beta), float(temperature)

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, weights: Tensor | None = None
    ) -> LossOutput:
        _check(student_logits, teacher_logits, labels)
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        with torch.autocast(device_type=student_logits.device.type, enabled=False):
            student = student_logits.to(dtype) / self.temperature
            teacher = teacher_logits.detach().to(student.device, dtype) / self.temperature
            # Means are over the samples that have a label
            real = labels != IGNORED
            labels = torch.where(real, labels, 0)
            parts = real.to(dtype) * (len(labels) / real.sum().clamp_min(1))
            parts = parts if weights is None else weights * parts
            s_binary, s_others = _split(student, labels)
            t_binary, t_others = _split(teacher, labels)
            scale = self.temperature**2
            target = scale * _divergence(s_binary, t_binary, parts)
            others = scale * _divergence(s_others, t_others, parts)
        agreement = weighted_mean((student_logits.argmax(-1) == teacher_logits.argmax(-1)).to(dtype), parts)
        logs = {"kd_agreement": agreement, "kd_target": target, "kd_others": others}
        return LossOutput(self.alpha * target + self.beta * others, {k: v.detach() for k, v in logs.items()})

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, temperature={self.temperature}"


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (n, 2) of the label and of all others, and (n, classes - 1) among the others."""
    labels = labels[:, None]
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= labels))  # all columns but the label's
    binary = torch.cat([logits.gather(1, labels), others.logsumexp(1, keepdim=True)], 1)
    return F.log_softmax(binary, 1), F.log_softmax(others, 1)


def _divergence(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    return (weights * F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)).mean()


def _check(student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits have shape {tuple(student.shape)} and teacher logits {tuple(teacher.shape)}: distillation "
            "of logits needs the same classes on both sides"
        )
    if student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(f"decoupled distillation needs logits (n, classes) of 2 classes or more, got {student.shape}")
    if tuple(labels.shape) != (len(student),) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"decoupled distillation needs one class number per sample, ({len(student)},), got labels of shape "
            f"{tuple(labels.shape)} and dtype {labels.dtype}"
        )
