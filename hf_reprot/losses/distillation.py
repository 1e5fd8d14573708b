"""Distillation of logits (Hinton, Vinyals, Dean, 2015, hf.co/papers/1503.02531)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .common import LossOutput

# transformers' names of the questions that a head answers
SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
IGNORED = -100  # the label that cross-entropy leaves out
PROBLEMS = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


class LogitDistillation(nn.Module):
    """Pulls the student's answers to the teacher's, in the form that goes with the question.

    One class per sample: the softened probabilities of the classes,

        loss = T^2 * (1/n) sum_k KL( softmax(teacher_k / T) | softmax(student_k / T) )

    several labels per sample: each class's own softened yes or no, with s the logistic function,

        loss = T^2 * (1/(n C)) sum_kc KL( Bernoulli(s(teacher_kc / T)) | Bernoulli(s(student_kc / T)) )

    regression: the numbers themselves, without a temperature,

        loss = (1/(n C)) sum_kc (teacher_kc - student_kc)^2

    The factor T^2 keeps the size of the gradient about the same whatever the temperature, so that one weight serves
    all of them. The second and third are means over the C outputs, as the task's own losses in transformers are.

    Args:
        temperature: T > 0, in units of logits. Higher is softer.
        problem_type: "single_label_classification", "multi_label_classification" or "regression", as in transformers'
            configs.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student_logits | (n, classes) | yes |
        | teacher_logits | (n, classes) | no |
        | weights (optional) | (n,), factors of the samples' divergences | no |

    Requirements: both models answer the same question: the same classes in the same order.

    Returns: `LossOutput` with `loss` and, in `logs`, kd_agreement: the share of samples with the same first answer; of
    yes or no answers that are the same; for regression, Lin's concordance of the numbers (1: all equal; 0: no more in
    common than independent ones).

    Relations: works on outputs, where `RepresentationTransport` works on representations; the two add up.

    Example:
        >>> import torch
        >>> from hf_reprot.losses import LogitDistillation
        >>> kd = LogitDistillation(temperature=2.0)
        >>> out = kd(torch.zeros(4, 3, requires_grad=True), torch.randn(4, 3))
        >>> out.loss.backward()

    References: Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015. Several labels: the
    per-class part of Yang et al., "Multi-Label Knowledge Distillation", ICCV 2023. Concordance: Lin, Biometrics 45,
    1989.
    """

    citation = """@article{hinton2015distilling,
  title={Distilling the Knowledge in a Neural Network},
  author={Hinton, Geoffrey and Vinyals, Oriol and Dean, Jeff},
  journal={arXiv:1503.02531},
  year={2015}
}"""

    def __init__(self, temperature: float = 2.0, problem_type: str = SINGLE_LABEL):
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if problem_type not in PROBLEMS:
            raise ValueError(f"problem_type must be one of {', '.join(PROBLEMS)}, got {problem_type!r}")
        self.temperature = float(temperature)
        self.problem_type = problem_type

    @property
    def classwise(self) -> bool:
        """Whether each output is a question of its own."""
        return self.problem_type != SINGLE_LABEL

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, *, weights: Tensor | None = None) -> LossOutput:
        if student_logits.shape != teacher_logits.shape:
            raise ValueError(
                f"student logits have shape {tuple(student_logits.shape)} and teacher logits "
                f"{tuple(teacher_logits.shape)}: distillation of logits needs the same classes on both sides"
            )
        agreement = self.agreement(student_logits, teacher_logits.detach(), weights).detach()
        divergence = self.divergence(student_logits, teacher_logits)
        divergence = divergence.mean(-1) if self.classwise else divergence  # (n,)
        divergence = divergence if weights is None else weights * divergence
        return LossOutput(divergence.mean(), logs={"kd_agreement": agreement})

    def divergence(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """How far apart the answers are, T^2 included: (n,); (n, classes) where each output is a question of its own.

        Args:
            student_logits, teacher_logits: (n, classes).
        """
        # Half precision loses the tail of a softmax; the loss is always computed in at least float32.
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = student_logits.to(dtype), teacher_logits.detach().to(dtype)
        if self.problem_type == REGRESSION:
            return (student - teacher).square()
        student, teacher = student / self.temperature, teacher / self.temperature
        if self.problem_type == SINGLE_LABEL:
            student, teacher = F.log_softmax(student, -1), F.log_softmax(teacher, -1)
            return self.temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        parts = [
            F.kl_div(F.logsigmoid(sign * student), F.logsigmoid(sign * teacher), reduction="none", log_target=True)
            for sign in (1, -1)  # yes and no
        ]
        return self.temperature**2 * (parts[0] + parts[1])

    @torch.no_grad()
    def agreement(self, student_logits: Tensor, teacher_logits: Tensor, weights: Tensor | None = None) -> Tensor:
        """() How much both answer alike: see the class."""
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        if self.problem_type == REGRESSION:
            return _concordance(student_logits.to(dtype), teacher_logits.to(dtype))
        if self.problem_type == SINGLE_LABEL:
            same = student_logits.argmax(-1) == teacher_logits.argmax(-1)
            return weighted_mean(same.to(dtype), weights)
        return weighted_mean(((student_logits > 0) == (teacher_logits > 0)).to(dtype).mean(-1), weights)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}" + (f", problem_type={self.problem_type!r}" if self.classwise else "")


def _concordance(student: Tensor, teacher: Tensor) -> Tensor:
    """() 2 cov / (var + var + squared difference of the means), over samples, averaged over outputs (..., outputs)."""
    student, teacher = student.flatten(0, -2), teacher.flatten(0, -2)
    means = student.mean(0), teacher.mean(0)
    covariance = ((student - means[0]) * (teacher - means[1])).mean(0)
    whole = student.var(0, correction=0) + teacher.var(0, correction=0) + (means[0] - means[1]).square()
    same = (student == teacher).all(0)
    return torch.where(same, 1.0, 2 * covariance / whole.clamp_min(torch.finfo(whole.dtype).tiny)).mean()


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values (n,), by their weights where there are any; 0 where all of these are 0."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)
