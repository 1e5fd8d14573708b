"""Features without data: `python -m studies.experimental.latent_features [--seeds 5] [--cache features.safetensors]`.

Eight Gaussians, then heads for Fashion-MNIST on features of a frozen EfficientNet-Lite0 with ImageNet weights (64
pixels; 2,000 for training, 500 for the heads' weight decay, 2,000 for testing): heads that see only what is drawn.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_reprot.experimental.latent import LatentTransport, nearest_distances
from studies.experimental.lite0_features import fashion_features, split
from studies.experimental.rival_features import blends, fit_head, gaussians


def ring(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight Gaussians (deviation 0.1) on a circle of radius 2: points and centres."""
    angles = torch.arange(8) * math.pi / 4
    centres = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    mode = torch.randint(0, 8, (n,), generator=generator)
    return centres[mode] + 0.1 * torch.randn(n, 2, generator=generator), centres


def eight_gaussians(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, centres = ring(2000, generator)
    latent = LatentTransport(seed=seed).fit(points, held_out=ring(2000, generator)[0])
    draws = {"fresh points": ring(20_000, generator)[0], "training points": points}
    for mixing in (0.0, 1.0, 3.0):
        latent.mixing = mixing
        draws[f"transport, mixing {mixing:g}"] = latent.sample(20_000, generator=generator)
    print(
        f"seed {seed}: mass error {latent.report['mass_error']:.3f}, of exact masses {latent.report['mass_noise']:.3f}"
    )
    for name, drawn in draws.items():
        distance, mode = torch.cdist(drawn, centres).min(1)
        share = torch.bincount(mode, minlength=8) / len(drawn)
        kl = (share * (8 * share).log()).nan_to_num(0).sum()
        near = (distance <= 0.3).float().mean()
        copies = (nearest_distances(drawn, points) < 1e-6).float().mean()
        modes = f"{(share >= 0.02).sum()} of 8 modes, {near:.1%} within 3 sigma, mode KL {kl:.4f}"
        print(f"    {name}: {modes}, copies {copies:.0%}", flush=True)


def heads(data: dict[str, Tensor], seed: int, draws: int) -> tuple[dict[str, float], str]:
    """Accuracy in % of each head, and the distances of what the transport draws."""
    (x, y), valid, test = split(data, seed, sizes=(2000, 500, 2000))
    generator = torch.Generator().manual_seed(seed)
    latent = LatentTransport(seed=seed).fit(x, y, held_out=valid[0])
    rows = torch.randint(0, len(x), (draws,), generator=generator)
    sources: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "the real features": lambda: (x, y),
        "a bag of them (control)": lambda: (x[rows], y[rows]),
        "blends of 5 neighbours (control)": lambda: blends(x, y, draws, generator),
        "Gaussians, diagonal": lambda: gaussians(x, y, draws, generator, full=False),
        "Gaussians, full (Ledoit-Wolf)": lambda: gaussians(x, y, draws, generator, full=True),
        "transport, mixing 0 (a bag by its law)": lambda: _drawn(latent, draws, generator, mixing=0.0),
        "transport": lambda: _drawn(latent, draws, generator),
        "transport, jitter 0.5": lambda: _drawn(latent, draws, generator, jitter=0.5),
    }
    found = {name: round(fit_head(*make(), valid, test), 2) for name, make in sources.items()}
    return found, ", ".join(f"{name} {value:.3g}" for name, value in latent.report.items())


def _drawn(latent: LatentTransport, n: int, generator: torch.Generator, mixing: float = 1.0, jitter: float = 0.0):
    latent.mixing, latent.jitter = mixing, jitter
    return latent.sample(n, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=6000, help="features that each generator draws for its head")
    parser.add_argument("--cache", type=Path, help="where the network's features are kept")
    given = parser.parse_args()
    for seed in range(3):
        eight_gaussians(seed)
    with tempfile.TemporaryDirectory() as folder:
        data = fashion_features(given.cache or Path(folder) / "features.safetensors")
    table: dict[str, Tensor] = {}
    for seed in range(given.seeds):
        scores, report = heads(data, seed, given.draws)
        print(f"seed {seed}: {report}\n    {scores}", flush=True)
        table = {name: torch.tensor([*table.get(name, torch.zeros(0)), score]) for name, score in scores.items()}
    for name, s in table.items():
        gain = s - table["the real features"]
        print(f"{name}: {s.mean():.1f} ± {s.std():.1f} %, {gain.mean():+.1f} ± {gain.std():.1f} from real")


if __name__ == "__main__":
    main()
