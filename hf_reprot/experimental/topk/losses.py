"""Losses on a soft top-k: the true class among the k best logits, and k nearest neighbours to learn features by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...losses.common import LossOutput
from .soft_topk import check_topk, topk_logits


def soft_topk_loss(logits: Tensor, labels: Tensor, k: int, epsilon: float = 1.0) -> Tensor:
    """Minus the log of how much the true class is among the k largest logits: for tasks that are scored by top-k.

        loss = -(1/n) sum_i log A(logits_i)_{y_i},   A = soft_topk(logits_i, k, epsilon)

    Once the true class is safely among the k best, nothing is left to gain, and capacity goes to other samples, where
    cross-entropy would go on to push it to the first place. As epsilon -> 0, (epsilon / 2) * loss tends to the hinge
    max(0, threshold - logit), with the threshold in the middle between the k-th and the next logit.

    Args:
        logits: (n, classes), any float dtype; computed in at least float32.
        labels: (n,) Classes, whole numbers.
        k: How many guesses count, from 1 to classes - 1.
        epsilon: Softness, in units of the logits. Smaller is nearer to the hinge.

    Returns:
        Scalar, differentiable in the logits once.

    Raises:
        ValueError: shapes, `k` or `epsilon` that do not fit.

    Relations: at k = 1 a smooth relative of cross-entropy, but not equal to it: the scores of the transport pass
    through sigmoids with a common threshold, not through a softmax.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.topk.losses import soft_topk_loss
        >>> logits = torch.randn(8, 20, requires_grad=True)
        >>> soft_topk_loss(logits, torch.arange(8), k=5).backward()

    References: Xie et al., "Differentiable Top-k with Optimal Transport", NeurIPS 2020. Another top-k loss over
    differentiable operators, averaged over several k: Petersen et al., ICML 2022, arXiv 2206.07290.
    """
    check_topk(logits, k, epsilon)
    if logits.ndim != 2 or tuple(labels.shape) != tuple(logits.shape[:1]):
        raise ValueError(
            f"logits must have shape (n, classes) and labels (n,), got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if k == logits.shape[1]:
        raise ValueError(f"k must be below the number of classes: among {k} of {k} every class is always found")
    inside = topk_logits(logits.to(torch.promote_types(logits.dtype, torch.float32)), k, epsilon)
    return F.softplus(-inside.gather(1, labels[:, None].long())).mean()


class SoftKNNHead(nn.Module):
    """k nearest neighbours that features can be trained by: the probability of the query's class among its k nearest.

    With s_i = -|x - c_i|^2 the score of candidate c_i for a query x, and A = soft_topk(s, k, epsilon),

        p(y | x) = (1/k) sum over candidates i of class y of A_i,        loss = -(1/q) sum over queries of log p(y | x)

    Training needs queries and candidates from the same batch or from two batches; prediction uses plain k nearest
    neighbours among training features, or `log_probabilities`. There are no weights of its own.

    Args:
        classes: Number of classes.
        k: Neighbours, from 1 to the number of candidates less one.
        epsilon: Softness, in units of squared distances: the one knob that matters. Too large, and far candidates
            count; far below the gaps between distances, and there is no gradient.
        normalize: Bring features to unit length first, so that distances lie in [0, 4] and `epsilon` means the same for
            every network.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | queries | (q, d), any float dtype | yes |
        | query_labels | (q,) | no |
        | candidates | (c, d) | yes |
        | candidate_labels | (c,) | no |

    Requirements: a query is not among its candidates (it would be its own neighbour). Queries without a candidate of
    their class teach nothing and are left out; `logs["without_class"]` is their share.

    Returns: `LossOutput` with `loss` and `logs`: knn_accuracy (the class with the largest p is the query's) and
    without_class.

    Relations: cross-entropy learns features for one linear head; this learns them for neighbours, and needs no head
    where classes change. A softmax over all candidates in the place of A is neighbourhood components analysis.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.topk.losses import SoftKNNHead
        >>> head = SoftKNNHead(classes=3, k=4, epsilon=0.1)
        >>> features = torch.randn(40, 16, requires_grad=True)
        >>> labels = torch.arange(40) % 3
        >>> out = head(features[:10], labels[:10], features[10:], labels[10:])
        >>> out.loss.backward()

    References: Xie et al., "Differentiable Top-k with Optimal Transport", NeurIPS 2020. The task: Grover et al.,
    "Stochastic Optimization of Sorting Networks via Continuous Relaxations", ICLR 2019. Neighbourhood components:
    Goldberger et al., NeurIPS 2004.
    """

    citation = """@inproceedings{xie2020differentiable,
  title={Differentiable Top-k with Optimal Transport},
  author={Xie, Yujia and Dai, Hanjun and Chen, Minshuo and Dai, Bo and Zhao, Tuo and Zha, Hongyuan and Wei, Wei and
          Pfister, Tomas},
  booktitle={Advances in Neural Information Processing Systems},
  year={2020}
}"""

    def __init__(self, classes: int, k: int = 9, epsilon: float = 0.1, normalize: bool = True):
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes must be at least 2, got {classes}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")
        self.classes, self.k, self.epsilon, self.normalize = classes, k, float(epsilon), normalize

    def forward(
        self, queries: Tensor, query_labels: Tensor, candidates: Tensor, candidate_labels: Tensor
    ) -> LossOutput:
        log_p = self.log_probabilities(queries, candidates, candidate_labels)
        own = log_p.gather(1, query_labels[:, None].long())[:, 0]  # (q, classes) -> (q,)
        known = own > -torch.inf
        loss = -torch.where(known, own, 0.0).sum() / known.sum().clamp_min(1)
        logs = {
            "knn_accuracy": (log_p.argmax(1) == query_labels).float().mean(),
            "without_class": 1.0 - known.float().mean(),
        }
        return LossOutput(loss, logs={name: value.detach() for name, value in logs.items()})

    def log_probabilities(self, queries: Tensor, candidates: Tensor, candidate_labels: Tensor) -> Tensor:
        """(q, classes) log p(y | x), exact however small p is; -inf for a class that no candidate has.

        Takes memory for q * c * classes numbers: give many queries in blocks.
        """
        if queries.ndim != 2 or candidates.ndim != 2 or queries.shape[1] != candidates.shape[1]:
            raise ValueError(
                f"queries and candidates must have shapes (q, d) and (c, d), got {tuple(queries.shape)} and "
                f"{tuple(candidates.shape)}"
            )
        if tuple(candidate_labels.shape) != (len(candidates),):
            raise ValueError(f"{len(candidates)} candidates need as many labels, got {tuple(candidate_labels.shape)}")
        if self.k >= len(candidates):
            raise ValueError(f"k={self.k} nearest of {len(candidates)} candidates says nothing: give more than k")
        scores = -squared_distances(*map(self._features, (queries, candidates)))
        log_in = F.logsigmoid(topk_logits(scores, self.k, self.epsilon))  # (q, c)
        owned = F.one_hot(candidate_labels.long(), self.classes).bool()  # (c, classes)
        return _log_sum_by_class(log_in, owned) - math.log(self.k)

    def _features(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return F.normalize(x, dim=1) if self.normalize else x

    def extra_repr(self) -> str:
        return f"classes={self.classes}, k={self.k}, epsilon={self.epsilon}, normalize={self.normalize}"


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(q, c) |x_i - y_j|^2 of x (q, d) and y (c, d), with a common offset taken off before they are multiplied."""
    offset = y.mean(0).detach()
    x, y = x - offset, y - offset
    return (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.t()).clamp_min(0)


def _log_sum_by_class(log_values: Tensor, owned: Tensor) -> Tensor:
    """(q, classes) log of the sum of exp(log_values) (q, c) over the candidates that a class owns (c, classes)."""
    return log_values[:, :, None].masked_fill(~owned, -torch.inf).logsumexp(1)
