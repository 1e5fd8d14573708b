"""Cheaper ways to draw features of a class, and the head that all ways are judged by."""

from __future__ import annotations

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor
from torch.nn import functional as F


class GaussianFeatures:
    """A Gaussian for each class, with the doors that `FeatureReplayCallback` asks for.

    `full`: the whole covariance, shrunk by Ledoit and Wolf's rule; else the variances.
    """

    def __init__(self, x: Tensor, y: Tensor, *, full: bool):
        self.labels, self.width = y.unique().tolist(), x.shape[1]
        self.share = torch.tensor([(y == c).sum().item() for c in self.labels]) / len(y)
        self.means = torch.stack([x[y == c].mean(0) for c in self.labels])
        self.roots = [_root(x[y == c], full) for c in self.labels]

    def to(self, device: torch.device) -> GaussianFeatures:
        return self

    def sample(self, n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = torch.multinomial(self.share, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.width, generator=generator)
        drawn = self.means[index]
        for i, root in enumerate(self.roots):
            own = index == i
            drawn[own] += noise[own] @ root.T if root.ndim == 2 else noise[own] * root
        return drawn, torch.tensor(self.labels)[index]


def _root(part: Tensor, full: bool) -> Tensor:
    if not full:
        return part.std(0)
    covariance = torch.from_numpy(ledoit_wolf(part.double().numpy())[0])
    return torch.linalg.cholesky(covariance + 1e-9 * torch.eye(len(covariance))).float()


def gaussians(x: Tensor, y: Tensor, n: int, generator: torch.Generator, full: bool) -> tuple[Tensor, Tensor]:
    return GaussianFeatures(x, y, full=full).sample(n, generator=generator)


def blends(x: Tensor, y: Tensor, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """SMOTE (Chawla et al., 2002): a point between a feature and one of its five nearest of the class."""
    rows = torch.randint(0, len(x), (n,), generator=generator)
    drawn = x[rows].clone()
    for c in y.unique():
        own, part = (y[rows] == c).nonzero()[:, 0], x[y == c]
        near = torch.cdist(drawn[own], part).topk(6, largest=False).indices[:, 1:]
        chosen = near.gather(1, torch.randint(0, 5, (len(own), 1), generator=generator))[:, 0]
        drawn[own] += torch.rand(len(own), 1, generator=generator) * (part[chosen] - drawn[own])
    return drawn, y[rows]


def fit_head(x: Tensor, y: Tensor, valid: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Test accuracy in % of a linear head on standardised features; its weight decay is chosen on real features."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    x, scores = (x - mean) / scale, []
    for decay in (1e-3, 1e-2, 1e-1):
        head = torch.nn.Linear(x.shape[1], int(max(y.max(), test[1].max())) + 1)
        torch.nn.init.zeros_(head.weight)
        optimizer = torch.optim.LBFGS(head.parameters(), max_iter=40, line_search_fn="strong_wolfe")

        def loss(head=head, optimizer=optimizer, decay=decay) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(head(x), y) + decay * head.weight.square().sum() / 2
            value.backward()
            return value

        optimizer.step(loss)
        right = [(head((f - mean) / scale).argmax(1) == labels).float().mean().item() for f, labels in (valid, test)]
        scores.append(right)
    return 100 * max(scores)[1]
