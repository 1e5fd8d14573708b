"""Which k of a teacher layer's neurons carry the mass of the transport: learned scores and what they learn from."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...losses.common import LossOutput
from ...losses.distillation import IGNORED
from ...ot.cost import varies
from .soft_topk import soft_topk

# Softness, in units of the standardised scores: at first, where every neuron can still come in, and at the end.
_SOFT, _SHARP = 1.0, 0.01
_HOLD = 0.5  # share of the selection's time before it begins to sharpen


class NeuronSelection(nn.Module):
    """Learned scores of d neurons; the k best carry the weight, softly at first and at the end alone.

        b = soft_topk(s, k, epsilon) / k,    s = scores, standardised over the neurons

    sums to 1: the marginal of the teacher in `RepresentationTransport`. `epsilon` is 1 for the first half of the
    selection's time and then falls geometrically to 0.01; at the end of it the k best are written down (`chosen`), and
    the weights are 1/k on them for good. Since the scores are standardised, neither the learning rate nor the optimiser
    decides how sharp the selection is: gradients pass to the scores as they are (straight through).

    What the scores learn from is a choice, and it matters:

    - A linear read-out of the labels from the standardised neurons times k b, trained along (`forward`): the neurons
      that the task needs. It starts at 0, so that its first step already points to them.
    - The transport's own value, whose gradient in b is the potential g: the neurons that are *easiest to match*, which
      are not those that matter. Neurons that are easy to copy and irrelevant come in before those that the task needs.

    Args:
        neurons: d, the width of the teacher's layer.
        k: How many, from 1 to d - 1.
        classes: Of the labels that the read-out tells; None: no read-out.

    Inputs of `forward`:
        | tensor | shape | gradient |
        |---|---|---|
        | teacher | (n, d), any float dtype | no |
        | labels | (n,), whole numbers; samples with -100 are left out | no |
        | weights | (d,), as `weights(progress)` gives | yes |

    Returns: `forward` a `LossOutput` with the read-out's cross-entropy as `loss`, and its accuracy in `logs`.

    Relations: choosing neurons by their variance, or by how well the labels tell them apart one by one, needs no
    training: try that first where neurons are few and not redundant.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.topk.selection import NeuronSelection
        >>> from hf_reprot.losses import RepresentationTransport
        >>> select = NeuronSelection(neurons=20, k=5, classes=3)
        >>> teacher, student, labels = torch.randn(64, 20), torch.randn(64, 8), torch.randint(3, (64,))
        >>> b = select.weights(progress=0.1)
        >>> loss = select(teacher, labels, b).loss
        >>> loss = loss + RepresentationTransport()(student, teacher, teacher_weights=b.detach()).loss
        >>> loss.backward()
        >>> int((select.weights(progress=1.0) > 0).sum())
        5

    References: the operator: Xie et al., "Differentiable Top-k with Optimal Transport", NeurIPS 2020. Straight-through
    gradients: Bengio, Léonard, Courville, 2013, arXiv 1308.3432.
    """

    chosen: Tensor

    def __init__(self, neurons: int, k: int, classes: int | None = None):
        super().__init__()
        if not 1 <= k < neurons:
            raise ValueError(f"k must be from 1 to {neurons - 1}, one less than there are neurons, got {k}")
        self.k = k
        self.scores = nn.Parameter(torch.zeros(neurons))
        self.register_buffer("chosen", torch.full((k,), -1))  # ascending, once the selection is over
        self.readout = None
        if classes is not None:
            self.readout = nn.Linear(neurons, classes)
            nn.init.zeros_(self.readout.weight)
            nn.init.zeros_(self.readout.bias)
        self._over = False

    def weights(self, progress: float) -> Tensor:
        """(d,) Weights of the neurons, summing to 1; differentiable in the scores before the selection is over.

        Args:
            progress: Share of the selection's time that has passed; at 1 it is over.
        """
        if progress >= 1:
            self._end()
            return torch.zeros_like(self.scores.detach()).index_fill_(0, self.chosen, 1 / self.k)
        scores = self.scores.detach()
        standard = (scores - scores.mean()) / scores.std().clamp_min(torch.finfo(scores.dtype).tiny)
        sharpness = max(0.0, (progress - _HOLD) / (1 - _HOLD))
        epsilon = _SOFT * (_SHARP / _SOFT) ** sharpness
        return soft_topk(self.scores + (standard - scores), self.k, epsilon) / self.k

    def _end(self) -> None:
        """Writes the k best down, once; where a checkpoint has them, they stay."""
        if not self._over and bool((self.chosen < 0).any()):
            self.chosen.copy_(self.scores.detach().topk(self.k).indices.sort().values)
        self._over = True

    def dead_weight(self, teacher: Tensor, weights: Tensor) -> Tensor:
        """Weight on neurons that are constant over the samples, to be added to what the scores learn from.

        A dead neuron has no gradient of its own there, and would be chosen before any that is worse than the average.
        """
        variance, mean = torch.var_mean(torch.nan_to_num(teacher.detach().float(), 0.0, 0.0, 0.0), 0, correction=0)
        return torch.where(varies(mean, variance), 0.0, weights).sum()

    def forward(self, teacher: Tensor, labels: Tensor, weights: Tensor) -> LossOutput:
        if self.readout is None:
            raise ValueError("there is no read-out: give classes at construction")
        if labels.ndim != 1 or labels.is_floating_point() or len(labels) != len(teacher):
            raise ValueError(
                f"labels must be {len(teacher)} classes, one a sample, got {labels.dtype} {tuple(labels.shape)}"
            )
        with torch.autocast(device_type=teacher.device.type, enabled=False):
            x = torch.nan_to_num(teacher.detach().float(), 0.0, 0.0, 0.0)
            variance, mean = torch.var_mean(x, 0, correction=0)
            alive = varies(mean, variance)
            x = torch.where(alive, (x - mean) * torch.where(alive, variance, 1.0).rsqrt(), 0.0)
            logits = self.readout(x * (self.k * weights))
            real = labels != IGNORED
            count = real.sum().clamp_min(1)
            loss = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum") / count
        accuracy = (logits.detach().argmax(1) == labels).sum() / count  # no class is -100
        return LossOutput(loss, logs={"accuracy": accuracy})

    def extra_repr(self) -> str:
        return f"neurons={len(self.scores)}, k={self.k}"
