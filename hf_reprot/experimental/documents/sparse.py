"""Exact transport between many sparse distributions on the same points: words of documents, or topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...ot.solve import solve

# Numbers in the cost matrices of one call of the solver (16 MB in float64).
_NUMBERS = 1 << 21
# Words whose distances are all computed at once (200 MB).
_LARGEST_TABLE = 5000

Costs = Callable[[Tensor, Tensor], Tensor]


def pairwise(rows: Tensor, other: Tensor | None, costs: Costs) -> Tensor:
    """Transport costs (n, m), float64, between all rows and all others; None: the rows themselves, each pair once.

    Args:
        rows: (n, V), float64, each of sum 1.
        other: (m, V), as `rows`.
        costs: `costs(u, v)` gives (B, s, t) between points (B, s) and (B, t).
    """
    n = len(rows)
    if other is not None:
        i, j = torch.cartesian_prod(torch.arange(n), torch.arange(len(other))).t()
        return transport_costs(rows, other, i, j, costs).view(n, -1)
    i, j = torch.triu_indices(n, n, offset=1)
    distances = rows.new_zeros(n, n)
    distances[i, j] = transport_costs(rows, rows, i, j, costs)
    return distances + distances.t()


def transport_costs(rows: Tensor, other: Tensor, i: Tensor, j: Tensor, costs: Costs) -> Tensor:
    """Transport costs (B,), float64, between rows[i] and other[j], where i and j are (B,); see `pairwise`.

    Problems are solved side by side on the supports only, in the order of their sizes, so that little is filled up
    with points of weight 0.
    """
    if not len(i):
        return rows.new_zeros(0)
    (left, i), (right, j) = (x.unique(return_inverse=True) for x in (i, j))
    whole = torch.cat([rows[left], other[right]])  # what is compared, and no more
    j = j + len(left)
    size = (whole > 0).sum(1)
    weights, points = whole.sort(1, descending=True)  # the support first
    larger = size[i] >= size[j]
    u, v = torch.where(larger, i, j), torch.where(larger, j, i)
    order = (size[u] * (int(size.max()) + 1) + size[v]).argsort()
    found = torch.zeros(len(i), dtype=torch.float64)
    for part in _batches(size[u[order]].tolist(), size[v[order]].tolist()):
        chosen = order[part]
        left, right = u[chosen], v[chosen]
        s, t = int(size[left].max()), int(size[right].max())
        matrix = costs(points[left, :s], points[right, :t])
        found[chosen] = solve(matrix, weights[left, :s], weights[right, :t], method="exact").cost
    return found


def word_costs(vectors: Tensor, power: float) -> Costs:
    """The function that gives the distances (B, s, t) between words (B, s) and (B, t): Euclidean, to the power."""

    def distances(x: Tensor, y: Tensor) -> Tensor:
        # Differences, not |x|^2 + |y|^2 - 2xy: a word is at 0 from itself, to the last digit.
        distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
        return distance if power == 1 else distance.pow(power)

    if len(vectors) > _LARGEST_TABLE:
        return lambda u, v: distances(vectors[u], vectors[v])
    table = distances(vectors, vectors)
    return lambda u, v: table[u[..., :, None], v[..., None, :]]


def with_vectors(name: str, rows: Tensor, vectors: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """Distributions over words, and the words' vectors, in float64.

    Raises:
        ValueError: shapes that do not fit, a negative or infinite weight, a row of zeros, or a power out of range.
    """
    vectors = torch.as_tensor(vectors).double().cpu()
    if vectors.ndim != 2 or not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"word_vectors must be finite and of shape (words, dimensions), got {tuple(vectors.shape)}")
    if not 0 < power < float("inf"):
        raise ValueError(f"power must be a finite number above 0, got {power}")
    return distributions(name, rows, len(vectors)), vectors


def distributions(name: str, rows: Tensor, columns: int) -> Tensor:
    """The rows in float64, each brought to sum 1.

    Raises:
        ValueError: not (n, columns), a negative or infinite weight, or a row of zeros.
    """
    rows = torch.as_tensor(rows).double().cpu()
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(f"{name} must have shape (n, {columns}), got {tuple(rows.shape)}")
    if not bool(torch.isfinite(rows).all()) or bool((rows < 0).any()):
        raise ValueError(f"{name} must be finite and have no negative entry")
    total = rows.sum(1, keepdim=True)
    if bool((total <= 0).any()):
        raise ValueError(f"{name}: row {int((total <= 0).nonzero()[0, 0])} has no mass")
    return rows / total


def _batches(rows: Sequence[int], columns: Sequence[int]) -> Iterator[slice]:
    """Runs of problems, sorted by rows, then columns, that are solved in one call: of about the same size."""
    start = 0
    for k in range(len(rows) + 1):
        if k < len(rows):
            same = rows[k] == rows[start] and columns[k] <= 1.2 * columns[start] + 2
            if (same and rows[k] * columns[k] * (k + 1 - start) <= _NUMBERS) or k == start:
                continue
        if k > start:
            yield slice(start, k)
        start = k
