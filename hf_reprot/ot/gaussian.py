"""Optimal transport between two Gaussians of which the cross moments are known, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .gradients import with_envelope_gradient
from .solvers.kernel import on_host

DEFAULT_RELATIVE_EPSILON = 0.1


@dataclass
class GaussianResult:
    """What `solve_gaussian` found.

    Attributes:
        overlap: () sum_k phi(s_k), by which entropic transport falls short of the two masses; differentiable in the
            cross moments.
        coupling: (m, n) Q, without a gradient: a partial isometry shrunk along weak directions. As epsilon -> 0 it is
            the orthogonal factor of the polar decomposition.
        epsilon: () Entropic strength in units of the cross moments.
    """

    overlap: Tensor
    coupling: Tensor
    epsilon: Tensor


def solve_gaussian(
    cross: Tensor,
    *,
    relative_epsilon: float | None = None,
    epsilon: float | None = None,
    rank: Tensor | None = None,
    basis: Tensor | None = None,
) -> GaussianResult:
    """Entropic transport between two centred Gaussians N(0, X X') and N(0, Y Y'), given only K = X'Y.

    The value is W = min over the couplings pi of E|x - y|^2 + 2 eps KL(pi | product). With s_k the singular values of K
    and r_k = sqrt(4 s_k^2 + eps^2) it is

        W = tr(XX') + tr(YY') - sum_k phi(s_k),   phi(s) = r - eps - eps log((r + eps) / (2 eps))

    and phi(s) -> 2 s as eps -> 0: W is then the squared Bures-Wasserstein distance. By the envelope theorem the
    gradient of sum phi in K is 2 Q, with

        Q = 2 (D + eps I)^-1 K,   D = (4 K K' + eps^2 I)^(1/2)

    X and Y themselves, which may be points in a space of any dimension, are not needed.

    Args:
        cross: K (m, n), float32 or float64.
        relative_epsilon: eps in units of the root mean square of the singular values; None: 0.1.
        epsilon: eps in units of K; overrides `relative_epsilon`.
        rank: () How many singular values can differ from 0 (their mean is over these); None: min(m, n).
        basis: (m, r) Orthonormal columns that span those of K, where r is smaller than m and n: everything is then
            computed between r and n.

    Raises:
        ValueError: a strength is not a finite number above 0, or `cross` is not a matrix.

    Example:
        >>> import torch
        >>> K = torch.diag(torch.tensor([3.0, 1.0]))
        >>> result = solve_gaussian(K, relative_epsilon=1e-4)
        >>> round(result.overlap.item(), 2)  # twice the sum of the singular values
        8.0

    References: Gelbrich: "On a formula for the L2 Wasserstein metric between measures on Euclidean and Hilbert spaces",
    1990; Janati, Muzellec, Peyre, Cuturi: "Entropic optimal transport between unbalanced Gaussian measures has a closed
    form", NeurIPS 2020 (there eps is sigma^2).
    """
    relative_epsilon = DEFAULT_RELATIVE_EPSILON if relative_epsilon is None else relative_epsilon
    check_epsilon(relative_epsilon=relative_epsilon, epsilon=epsilon)
    if cross.ndim != 2:
        raise ValueError(f"cross must have shape (m, n), got {tuple(cross.shape)}")
    with torch.no_grad():
        K = cross.detach()
        small = K if basis is None else basis.mT @ K
        turned = small.shape[0] > small.shape[1]
        small = small.mT if turned else small  # (k, larger)
        k = small.shape[0]
        total = small.square().sum()
        count = torch.full_like(total, float(k)) if rank is None else rank.to(total).clamp(1, k)
        # All-zero cross moments: nothing to transport, and nothing to divide by.
        eps = torch.where(total > 0, relative_epsilon * (total / count).sqrt(), torch.ones_like(total))
        if epsilon is not None:
            eps = torch.full_like(total, epsilon)
        solver = _by_eigenvalues if on_host(K) else _by_products
        overlap, coupling = solver(small, eps, relative_epsilon if epsilon is None else None)
        coupling = coupling.mT if turned else coupling
        coupling = coupling if basis is None else basis @ coupling
    return GaussianResult(with_envelope_gradient(overlap, cross, 2 * coupling), coupling, eps)


def check_epsilon(**strengths: float | None) -> None:
    """Refuses what is no strength of an entropy.

    Raises:
        ValueError: one that is given is not a finite number above 0.
    """
    for name, value in strengths.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be a finite number above 0, got {value}")


def _by_eigenvalues(K: Tensor, epsilon: Tensor, _: float | None) -> tuple[Tensor, Tensor]:
    """(overlap, Q) from the eigenvalues of K K', in float64: squares halve the digits."""
    wide = K.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    eps = epsilon.double()
    r = (4 * values.clamp_min(0) + eps.square()).sqrt()
    overlap = (r - eps - eps * ((r + eps) / (2 * eps)).log()).sum()
    Q = (vectors * (2 / (r + eps))) @ (vectors.mT @ wide)
    return overlap.to(K.dtype), Q.to(K.dtype)


def _by_products(K: Tensor, epsilon: Tensor, relative_epsilon: float | None) -> tuple[Tensor, Tensor]:
    """The same by products of matrices and a Cholesky factor, which do not ask the device for an answer.

    The root of A = 4 K K' + eps^2 I by the coupled Newton-Schulz iteration (Higham, "Functions of Matrices", 6.7).
    A small eigenvalue's root grows by half in each step, and none is under relative_epsilon / (2 sqrt(k)) of the
    largest: so many steps, and six to converge, whatever the values (for an absolute epsilon, as for 1e-4).
    """
    k = K.shape[0]
    eye = torch.eye(k, dtype=K.dtype, device=K.device)
    A = 4 * (K @ K.mT) + epsilon.square() * eye
    scale = A.norm()
    Y, Z = A / scale, eye
    least = (relative_epsilon or 1e-4) / (2 * math.sqrt(k))
    for _ in range(6 + math.ceil(math.log(1 + 1 / least) / math.log(1.5))):
        T = 1.5 * eye - 0.5 * (Z @ Y)
        Y, Z = Y @ T, T @ Z
    D = scale.sqrt() * 0.5 * (Y + Y.mT)
    factor = torch.linalg.cholesky_ex(D + epsilon * eye).L
    logarithm = 2 * factor.diagonal().log().sum() - k * (2 * epsilon).log()
    overlap = D.diagonal().sum() - k * epsilon - epsilon * logarithm
    return overlap, 2 * torch.cholesky_solve(K, factor)
