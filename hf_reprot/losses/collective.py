"""Moments of the global batch: what the processes of a run exchange so that all of them solve the same problem."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch import distributed as dist

from ..ot.moments import PairMoments


def world_size() -> int:
    """Number of processes of the default group; 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def merge_over_processes(local: Sequence[PairMoments]) -> list[PairMoments]:
    """Merges every pair's moments over all processes, by the formula of Chan, Golub and LeVeque (1979).

    Two collectives whatever the number of pairs: one gathers counts and means (d_s + d_t + 1 numbers per pair and
    process), one sums the centred second moments (d_s d_t + d_s + d_t numbers per pair). Neither depends on the number
    of samples. Activations stay where they are.

    Args:
        local: This process's moments, a list of the same length and widths on every process.

    Returns:
        The moments of all samples, the same numbers on every process.
    """
    if world_size() == 1 or not local:
        return list(local)
    # 1. counts and means of everyone: (processes, sum over pairs of 1 + d_s + d_t)
    means = torch.cat([torch.cat([m.count.reshape(1), m.mean_s, m.mean_t]) for m in local])
    gathered = means.new_empty((world_size(), means.numel()))
    dist.all_gather_into_tensor(gathered.view(-1), means.contiguous())

    # 2. second moments about the common mean, weighted by this process's share of the samples, then summed
    shares, common = [], []
    offset = 0
    for m in local:
        ds, dt = m.mean_s.numel(), m.mean_t.numel()
        counts = gathered[:, offset]  # (processes,)
        total = counts.sum()
        some = total.clamp_min(torch.finfo(total.dtype).tiny)  # weights of samples may sum to less than 1
        share = counts / some
        mean_s = share @ gathered[:, offset + 1 : offset + 1 + ds]
        mean_t = share @ gathered[:, offset + 1 + ds : offset + 1 + ds + dt]
        offset += 1 + ds + dt
        mine = m.count / some
        shift_s, shift_t = m.mean_s - mean_s, m.mean_t - mean_t
        shares += [
            mine * (m.var_s + shift_s.square()),
            mine * (m.var_t + shift_t.square()),
            (mine * (m.cov + torch.outer(shift_s, shift_t))).reshape(-1),
        ]
        common.append((total, mean_s, mean_t))
    flat = torch.cat(shares)
    dist.all_reduce(flat)

    merged = []
    offset = 0
    for total, mean_s, mean_t in common:
        ds, dt = mean_s.numel(), mean_t.numel()
        var_s, var_t, cov = flat[offset : offset + ds + dt + ds * dt].split([ds, dt, ds * dt])
        offset += ds + dt + ds * dt
        merged.append(PairMoments(total, mean_s, mean_t, var_s, var_t, cov.view(ds, dt)))
    return merged


def gather_rows(local: Tensor) -> Tensor:
    """All processes' rows (n, d) of what each holds some rows (k, d) of, in the order of the processes; no gradient."""
    if world_size() == 1:
        return local
    lengths = [torch.zeros((), dtype=torch.long, device=local.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(local), device=local.device))
    counts = [int(length) for length in lengths]
    # Collectives want one size: short ones are filled up.
    padded = local.new_zeros(max(counts), *local.shape[1:])
    padded[: len(local)] = local
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])


def bytes_per_merge(widths: Sequence[tuple[int, int]], itemsize: int = 4) -> int:
    """Bytes that one process contributes to the two collectives of `merge_over_processes`.

    Args:
        widths: (d_s, d_t) of each pair.
        itemsize: Bytes of a number: 4 for float32.
    """
    return itemsize * sum((1 + ds + dt) + (ds * dt + ds + dt) for ds, dt in widths)
