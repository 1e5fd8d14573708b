"""Distillation of logits (Hinton, Vinyals, Dean, 2015, hf.co/papers/1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import LossOutput


class LogitDistillation(nn.Module):
    """Pulls the student's softened class probabilities to the teacher's.

    loss = T^2 * (1/n) sum_k KL( softmax(teacher_k / T) | softmax(student_k / T) )

    The factor T^2 keeps the size of the gradient about the same whatever the temperature, so that one weight serves
    all of them.

    Args:
        temperature: T > 0, in units of logits. Higher is softer.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student_logits | (n, classes) | yes |
        | teacher_logits | (n, classes) | no |
        | weights (optional) | (n,), factors of the samples' divergences | no |

    Requirements: both models answer the same question: the same classes in the same order.

    Relations: works on outputs, where `RepresentationTransport` works on representations; the two add up.

    Example:
        >>> import torch
        >>> from hf_reprot.losses import LogitDistillation
        >>> kd = LogitDistillation(temperature=2.0)
        >>> out = kd(torch.zeros(4, 3, requires_grad=True), torch.randn(4, 3))
        >>> out.loss.backward()

    References: Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015.
    """

    citation = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv:1503.02531},
  year={2015}
}"""

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.temperature = float(temperature)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, weights: Tensor | None = None) -> LossOutput:
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits have shape {tuple(student_logits.shape)} and teacher logits "
                f"{tuple(teacher_logits.shape)}: distillation of logits needs the same classes on both sides"
            )
        # Half precision loses the tail of a softmax; the loss is always computed in at least float32.
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student = F.log_softmax(student_logits.to(dtype) / self.temperature, dim=-1)
        teacher = F.log_softmax(teacher_logits.detach().to(dtype) / self.temperature, dim=-1)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)  # (n, classes) -> (n,)
        agreement = (student_logits.argmax(-1) == teacher_logits.argmax(-1)).to(dtype)
        agreement = weighted_mean(agreement, weights)
        divergence = divergence if weights is None else weights * divergence
        return LossOutput(self.temperature**2 * divergence.mean(), logs={"kd_agreement": agreement.detach()})

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values (n,), by their weights where there are any; 0 where all of these are 0."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
