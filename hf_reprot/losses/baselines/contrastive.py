"""Contrastive distillation: a sample's two representations find each other in the batch (hf.co/papers/1910.10699)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..common import LossOutput
from .base import FeatureLoss


class ContrastiveDistillation(FeatureLoss):
    """Student and teacher embed a sample near to each other and far from the other samples of the batch.

    With u_k and v_k the learned linear projections of student and teacher to `width` dimensions, of unit length, and
    L = U V' / temperature,

        loss = cross entropy of the rows of L + cross entropy of its columns, the diagonal being right

    This is the paper's objective with in-batch negatives. The paper draws 16,384 negatives of other classes per sample
    from a memory bank of the whole training set and uses a binary NCE against uniform noise; here the negatives are the
    n - 1 other samples of the batch, whatever their class, compared by a softmax (InfoNCE), so that no memory bank,
    labels or sample indices are needed. Expect less of it with small batches.

    Args:
        student_width: d_s.
        teacher_width: d_t.
        width: Dimensions of the common space.
        temperature: Above 0; lower tells near samples apart harder.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student | (n, d_s), any float dtype | yes |
        | teacher | (n, d_t), any float dtype | no |

    Requirements: at least 2 samples; with 1 the loss is 0. Both projections are in the optimiser. In a distributed run
    the negatives are those of the process.

    Returns: `LossOutput` with `loss` and `logs["retrieved"]`: the share of samples whose student finds its own teacher.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import ContrastiveDistillation
        >>> loss = ContrastiveDistillation(32, 48)
        >>> out = loss(torch.randn(16, 32, requires_grad=True), torch.randn(16, 48))
        >>> out.loss.backward()

    References: Tian, Krishnan, Isola: "Contrastive Representation Distillation", ICLR 2020; width and temperature of
    the authors' code. InfoNCE: van den Oord, Li, Vinyals, 2018.
    """

    input_kind: ClassVar[str] = "samples"
    learned: ClassVar[bool] = True

    citation = """@inproceedings{tian2020contrastive,
  title={Contrastive Representation Distillation},
  author={Tian, Yonglong and Krishnan, Dilip and Isola, Phillip},
  booktitle={ICLR},
  year={2020}
}"""

    def __init__(self, student_width: int, teacher_width: int, width: int = 128, temperature: float = 0.07):
        super().__init__()
        for name, value in (("student_width", student_width), ("teacher_width", teacher_width), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
        self.student_projector = nn.Linear(student_width, width)
        self.teacher_projector = nn.Linear(teacher_width, width)
        self.temperature = float(temperature)

    def compare(self, student: Tensor, teacher: Tensor) -> LossOutput:
        u = F.normalize(self.student_projector(student), dim=1)
        v = F.normalize(self.teacher_projector(teacher), dim=1)
        logits = u @ v.t() / self.temperature  # (n, width) @ (width, n) -> (n, n)
        right = torch.arange(len(logits), device=logits.device)
        loss = F.cross_entropy(logits, right) + F.cross_entropy(logits.t(), right)
        retrieved = (logits.detach().argmax(1) == right).to(logits.dtype).mean()
        return LossOutput(loss, logs={"retrieved": retrieved})

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}"
