"""Distillation of logits from several teachers, each of which may know only some of the student's classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from .collective import world_size
from .common import LossOutput
from .distillation import IGNORED, LogitDistillation


class PartialDistillation(nn.Module):
    """Pulls the student's answers to those of several teachers, each over the classes that it knows.

    With q the student's and p_i teacher i's softened probabilities, C_i the classes of teacher i, q|C the student's
    renormalised over the classes C, and g_ik how much teacher i is heard on sample k (over the teachers, a sample's
    sum to 1, or are all 0 where no teacher knows its label):

        with labels     g_ik ~ w_i [label_k in C_i]
                        loss = T^2 (1/n) sum_k sum_i g_ik KL(p_ik | q_k|C_i)
        without         g_ik ~ w_i sum_{c in C_i} exp(s_i (z_ikc - mean z_ik))
                        loss = T^2 (1/n) sum_k KL(sum_i g_ik p_ik | q_k|U),  U all classes that some teacher knows

    With labels a sample is taught by those who know its class, and its label says which group of classes it is in.
    Without, the teachers' own confidence says it: the gates are what a softmax over all their logits side by side would
    give. Logits are centred over all outputs of a teacher (so that one for "none of these" lowers its voice) and scaled
    by s_i, which gives all teachers the same largest centred logit in the batch, the geometric mean of theirs: a
    teacher that was trained to be surer than others is not heard more. Where every teacher knows all classes, g_ik =
    w_i / sum_i w_i in both cases and the loss is the weighted mean of the teachers' own. Samples with the label -100
    are left out where labels take part, also of n, as cross-entropy leaves them out.

    Where each output is a question of its own (`LogitDistillation` of several labels or of regression), every teacher
    is heard on all samples, for the classes that it knows, and neither labels nor confidence are asked:

        g_ic = w_i [c in C_i] / sum_{j: c in C_j} w_j,    loss = mean over k and c in U of sum_i g_ic D(t_ikc, s_kc)

    Args:
        classes: For each teacher the student's class of each of its outputs, None for outputs without one; or None for
            a teacher with the student's classes in the student's order.
        count: Number of the student's classes.
        weights: w_i above 0, one per teacher; None: all alike.
        loss: The loss between a student's and a teacher's logits over the same classes: `LogitDistillation` or
            `DecoupledDistillation` (which needs labels).
        global_batch: In a distributed run, find s_i on the samples of all processes (one number per teacher is
            exchanged). All else is a mean over the samples at hand.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | student_logits | (..., classes) | yes |
        | teacher_logits | one (..., outputs) a teacher | no |
        | labels (optional) | (...), integers; -100 is left out, others that are no class are of no teacher | no |

    Requirements: without labels, batches that show every teacher samples that it is sure of: its peak is its measure.

    Returns: `LossOutput` with `loss` and, in `logs`, kd_agreement (share of samples with the same first answer) and for
    each teacher i "loss/i" (its own divergence, averaged over the samples on which it is heard) and "heard/i" (the mean
    of g_ik).

    Relations: `LogitDistillation` where there is one teacher that knows all classes.

    Example:
        >>> import torch
        >>> from hf_reprot.losses import PartialDistillation
        >>> kd = PartialDistillation([[0, 1], [2, 3, 4]], 5)
        >>> student = torch.zeros(4, 5, requires_grad=True)
        >>> out = kd(student, [torch.randn(4, 2), torch.randn(4, 3)], labels=torch.tensor([0, 1, 2, 4]))
        >>> out.loss.backward()
        >>> out.logs["heard/0"].item()
        0.5

    References: one student for classifiers of different classes: Vongkulbhisal, Vinayavekhin, Visentini-Scarzanella,
    "Unifying Heterogeneous Classifiers with Distillation", CVPR 2019 (1904.06062); logits side by side as the target:
    Luo et al., "Knowledge Amalgamation from Heterogeneous Networks by Common Feature Learning", IJCAI 2019
    (1906.10546); the least ambiguous teacher, sample by sample: Shen et al., ICCV 2019 (1908.07121), of which g is a
    soft form.
    """

    citation = """@inproceedings{vongkulbhisal2019unifying,
  title={Unifying Heterogeneous Classifiers with Distillation},
  author={Vongkulbhisal, Jayakorn and Vinayavekhin, Phongtharin and Visentini-Scarzanella, Marco},
  booktitle={CVPR},
  year={2019}
}"""

    loss: Any  # LogitDistillation, or another loss with its methods
    share: Tensor
    knows: Tensor
    union: Tensor

    def __init__(
        self,
        classes: Sequence[Sequence[int | None] | None],
        count: int,
        *,
        weights: Sequence[float] | None = None,
        loss: nn.Module | None = None,
        global_batch: bool = True,
    ):
        super().__init__()
        weights = [1.0] * len(classes) if weights is None else [float(weight) for weight in weights]
        if not classes or len(weights) != len(classes):
            raise ValueError(f"{len(classes)} teachers and {len(weights)} weights: give one weight for each of them")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ValueError(f"weights must be finite numbers above 0, got {weights}")
        self.count = int(count)
        self.global_batch = global_batch
        self.loss = LogitDistillation() if loss is None else loss
        everything = list(range(self.count))
        listed = [everything if c is None else list(c) for c in classes]
        for columns in listed:
            found = [c for c in columns if c is not None]
            if not found or len(set(found)) < len(found) or not 0 <= min(found) <= max(found) < self.count:
                raise ValueError(f"classes must be different numbers from 0 to {self.count - 1}, got {columns}")
        self.outputs = [len(columns) for columns in listed]
        self.partial = [{c for c in columns if c is not None} != set(everything) for columns in listed]
        self._as_is = [columns == everything for columns in listed]
        for i, columns in enumerate(listed):
            kept = torch.tensor([output for output, c in enumerate(columns) if c is not None])
            known = torch.tensor([c for c in columns if c is not None])
            place = torch.zeros(self.count, dtype=torch.long).scatter_(0, known, torch.arange(len(known)))
            for name, value in (("kept", kept), ("columns", known), ("place", place)):
                self.register_buffer(f"{name}_{i}", value, persistent=False)
        knows = torch.stack([torch.zeros(self.count).index_fill(0, self.get_buffer(f"columns_{i}"), 1.0) for i in self])
        share = torch.tensor(weights) / sum(weights)
        self.register_buffer("share", share, persistent=False)
        self.register_buffer("knows", knows, persistent=False)  # (teachers, classes): 0 or 1
        self.register_buffer("union", knows.amax(0).nonzero().flatten(), persistent=False)

    def __iter__(self) -> Iterator[int]:
        """Numbers of the teachers."""
        return iter(range(len(self.outputs)))

    def forward(
        self, student_logits: Tensor, teacher_logits: Sequence[Tensor], labels: Tensor | None = None
    ) -> LossOutput:
        self._check(student_logits, teacher_logits, labels)
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        with torch.autocast(device_type=student_logits.device.type, enabled=False):
            student = student_logits.to(dtype)
            teachers = [logits.detach().to(dtype) for logits in teacher_logits]
            if getattr(self.loss, "classwise", False):
                return self._classwise(student, teachers)
            heard = self.heard(teachers, labels)  # (teachers, ...)
            teachers = [self._answers(i, teachers[i]) for i in self]
            # With labels, means are over the samples that have one
            rows = (labels != IGNORED).sum() if labels is not None and any(self.partial) else None
            each = [self._each(i, student, teachers[i], labels, heard[i], rows) for i in self]
            logs = self._logs(each, heard, rows)
            if labels is None and any(self.partial):
                return self._joint(student, teachers, heard, logs)
        return LossOutput(torch.stack([output.loss for output in each]).sum(), logs)

    def _answers(self, i: int, logits: Tensor) -> Tensor:
        """Teacher i's logits of the classes that the student has."""
        return logits if self._as_is[i] else logits.index_select(-1, self.get_buffer(f"kept_{i}"))

    @torch.no_grad()
    def heard(self, teachers: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """g (teachers, ...): how much each teacher is heard on each sample, from their logits in at least float32."""
        like = teachers[0][..., 0]
        if self.share.device != like.device:
            self.to(like.device)  # once
        share = self.share.to(like).view(-1, *[1] * like.dim())
        if not any(self.partial):
            return share.expand(-1, *like.shape)
        if labels is None:
            centred = [self._answers(i, z - z.mean(-1, keepdim=True)) for i, z in enumerate(teachers)]
            scale = self._scale(torch.stack([z.amax() for z in centred]))
            sure = torch.stack([(s * z).logsumexp(-1) for s, z in zip(scale, centred, strict=True)])
            return (sure + share.log()).softmax(0)
        real = (labels >= 0) & (labels < self.count)
        knows = self.knows.to(like)[:, labels.clamp(0, self.count - 1)] * real  # (teachers, ...)
        mass = share * knows
        return mass / mass.sum(0).clamp_min(torch.finfo(like.dtype).tiny)

    def _scale(self, peaks: Tensor) -> Tensor:
        """s (teachers,) from the largest centred logit of each."""
        if self.global_batch and world_size() > 1:
            dist.all_reduce(peaks, op=dist.ReduceOp.MAX)
        logs = peaks.clamp_min(1e-6).log()
        return (logs.mean() - logs).exp()

    def _each(
        self, i: int, student: Tensor, teacher: Tensor, labels: Tensor | None, heard: Tensor, rows: Tensor | None
    ) -> LossOutput:
        """Teacher i's own loss over its classes, every sample weighed by how much it is heard there."""
        if not self._as_is[i]:
            student = student.index_select(-1, self.get_buffer(f"columns_{i}"))
            if labels is not None:
                places = self.get_buffer(f"place_{i}")[labels.clamp(0, self.count - 1)]
                labels = torch.where(labels == IGNORED, IGNORED, places)
        if getattr(self.loss, "needs_labels", False):  # it leaves samples without a label out itself
            return self.loss(student, teacher, labels, weights=heard)
        if rows is not None:
            heard = heard * (heard.numel() / rows.clamp_min(1))
        return self.loss(student, teacher, weights=heard)

    def _classwise(self, student: Tensor, teachers: Sequence[Tensor]) -> LossOutput:
        """Each class against those who know it."""
        if self.share.device != student.device:
            self.to(student.device)  # once
        share = self.share[:, None] * self.knows
        share = (share / share.sum(0).clamp_min(torch.finfo(share.dtype).tiny)).to(student)  # (teachers, classes)
        heard = share.index_select(1, self.union).mean(1)
        total, agreement = torch.zeros_like(student), student.new_zeros(())
        logs: dict[str, Tensor] = {}
        for i in self:
            columns = self.get_buffer(f"columns_{i}")
            ours, theirs = student.index_select(-1, columns), self._answers(i, teachers[i])
            divergence = self.loss.divergence(ours, theirs)
            total = total.index_add(-1, columns, share[i, columns] * divergence)
            agreement = agreement + heard[i] * self.loss.agreement(ours.detach(), theirs)
            logs |= {f"loss/{i}": divergence.mean().detach(), f"heard/{i}": heard[i]}
        return LossOutput(total.index_select(-1, self.union).mean(), {"kd_agreement": agreement, **logs})

    def _joint(self, student: Tensor, teachers: Sequence[Tensor], heard: Tensor, logs: dict[str, Tensor]) -> LossOutput:
        """The student against what all teachers together say."""
        temperature = self.loss.temperature
        target = torch.zeros_like(student)
        for i in self:
            answer = heard[i].unsqueeze(-1) * F.softmax(teachers[i] / temperature, -1)
            target = target.index_add(-1, self.get_buffer(f"columns_{i}"), answer)
        target = target.index_select(-1, self.union)
        student = student.index_select(-1, self.union)
        logs["kd_agreement"] = (student.argmax(-1) == target.argmax(-1)).to(student.dtype).mean()
        divergence = F.kl_div(F.log_softmax(student / temperature, -1), target, reduction="none").sum(-1)
        return LossOutput(temperature**2 * divergence.mean(), logs)

    def _logs(self, each: Sequence[LossOutput], heard: Tensor, rows: Tensor | None) -> dict[str, Tensor]:
        loudness = heard.flatten(1).mean(1)  # (teachers,)
        if rows is not None:
            loudness = loudness * (heard[0].numel() / rows.clamp_min(1))
        safe = loudness.clamp_min(torch.finfo(heard.dtype).tiny)
        logs = {}
        for name in each[0].logs:
            values = torch.stack([output.logs[name] for output in each])
            whole = loudness.sum().clamp_min(torch.finfo(heard.dtype).tiny)
            # Shares are of the samples on which a teacher is heard; the parts of a loss add up, as the losses do.
            logs[name] = (loudness * values).sum() / whole if name == "kd_agreement" else values.sum()
        for i, output in enumerate(each):
            logs[f"loss/{i}"] = (output.loss / safe[i]).detach()
            logs[f"heard/{i}"] = loudness[i]
        return logs

    def _check(self, student: Tensor, teachers: Sequence[Tensor], labels: Tensor | None) -> None:
        if len(teachers) != len(self.outputs):
            raise ValueError(f"logits of {len(teachers)} teachers for a loss of {len(self.outputs)}")
        if student.shape[-1] != self.count:
            raise ValueError(f"student logits have {student.shape[-1]} classes, the loss was made for {self.count}")
        for i, (logits, outputs) in enumerate(zip(teachers, self.outputs, strict=True)):
            if logits.shape != (*student.shape[:-1], outputs):
                raise ValueError(
                    f"teacher {i}: logits have shape {tuple(logits.shape)}, where {(*student.shape[:-1], outputs)} "
                    "goes with the student's and with its classes"
                )
        if labels is None and getattr(self.loss, "needs_labels", False):
            raise ValueError(f"{type(self.loss).__name__} needs labels, and none were given")
        if labels is None or not any(self.partial) or getattr(self.loss, "classwise", False):
            return
        if labels.shape != student.shape[:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(
                "where a teacher knows only some classes, labels say which samples are its own: one class number a "
                f"sample, {tuple(student.shape[:-1])}, got {labels.dtype} {tuple(labels.shape)}"
            )

    def extra_repr(self) -> str:
        return f"count={self.count}, outputs={self.outputs}, partial={self.partial}"
