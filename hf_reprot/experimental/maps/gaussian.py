"""The optimal map between Gaussians, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def gaussian_map(covariance_x: Tensor, covariance_y: Tensor) -> Tensor:
    """The matrix of the 2-Wasserstein map between two centred Gaussians: T(x) = A x.

        A = S1^-1/2 (S1^1/2 S2 S1^1/2)^1/2 S1^-1/2,   A S1 A = S2,  A symmetric positive semidefinite

    It is also the best linear map for any two laws with these covariances, when each is one affine image of the other
    (Dowson, Landau, 1982; Peyré, Cuturi, 2019, remark 2.31). Computed in float64. Directions in which x does not vary
    are sent to 0.

    Args:
        covariance_x: S1 (d, d), symmetric positive semidefinite.
        covariance_y: S2 (d, d).

    Returns:
        A (d, d) float64.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.maps import gaussian_map
        >>> gaussian_map(torch.eye(2), torch.diag(torch.tensor([4.0, 9.0])))
        tensor([[2., 0.],
                [0., 3.]], dtype=torch.float64)
    """
    if covariance_x.shape != covariance_y.shape or covariance_x.ndim != 2 or len({*covariance_x.shape}) != 1:
        raise ValueError(
            f"covariances must both be (d, d), got {tuple(covariance_x.shape)} and {tuple(covariance_y.shape)}"
        )
    values, vectors = torch.linalg.eigh(covariance_x.double())
    alive = values > values.amax().clamp_min(0) * len(values) * torch.finfo(torch.double).eps
    roots = torch.where(alive, values, 0.0).sqrt()
    inverse = torch.where(alive, 1 / torch.where(alive, roots, 1.0), 0.0)
    root, inverse = ((vectors * scale) @ vectors.mT for scale in (roots, inverse))
    values, vectors = torch.linalg.eigh(root @ covariance_y.double() @ root)
    middle = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    A = inverse @ middle @ inverse
    return (A + A.mT) / 2


def shrunk_covariance(x: Tensor, shrinkage: float | None = None) -> Tensor:
    """Covariance (d, d) in float64, pulled toward a multiple of the identity: (1 - r) S + r (tr S / d) I.

    Args:
        x: (n, d).
        shrinkage: r, from 0 to 1. None: what the oracle approximating formula gives for n samples of a Gaussian (Chen,
            Wiesel, Eldar, Hero, 2010, arXiv 0907.4698): near 1 for few samples of many neurons, near 0 for many.
    """
    n, d = x.shape
    x = x.double() - x.double().mean(0)
    S = x.mT @ x / n
    mean = S.diagonal().mean()
    share: float | Tensor
    if shrinkage is None:
        alpha = S.square().mean()
        above, below = alpha + mean.square(), (n + 1.0) * (alpha - mean.square() / d)
        share = torch.where(below > above, above / torch.where(below > 0, below, 1.0), 1.0)
    else:
        share = shrinkage
    return (1 - share) * S + share * mean * torch.eye(d, dtype=S.dtype, device=S.device)


class Linear(nn.Module):
    """x -> A x of centred points: the Gaussian map, or the identity."""

    A: Tensor

    def __init__(self, A: Tensor):
        super().__init__()
        self.register_buffer("A", A)

    @classmethod
    def between(cls, x: Tensor, y: Tensor, shrinkage: float | None) -> Linear:
        """The Gaussian map of centred x (n, d) to centred y (m, d)."""
        A = gaussian_map(*(shrunk_covariance(z, shrinkage) for z in (x, y)))
        return cls(A.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.A.mT
