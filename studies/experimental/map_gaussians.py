"""Transport maps where the answer is known: `python -m studies.experimental.map_gaussians [--methods ...] [--seeds 3]`.

Gaussian to Gaussian in 2, 8 and 32 dimensions (2,048 samples a side; error on 4,096 others, as L2-UVP in %), and three
problems in the plane (1,024 samples a side; mean distance to the exact discrete map over its mean length): four
Gaussians brought nearer ("four nearer", nearly linear), turned by 30 degrees ("four turned", where the Gaussian map is
of no use), and one Gaussian torn into four ("one to four", a map that is not continuous).
"""

from __future__ import annotations

import argparse
import math

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from hf_reprot.experimental.maps import METHODS, TransportMap, barycentric_map, gaussian_map
from hf_reprot.ot import solve


def covariance(d: int, generator: torch.Generator) -> Tensor:
    """Random directions with variances from 1/4 to 4."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    return (Q * 4 ** (2 * torch.rand(d, generator=generator, dtype=torch.float64) - 1)) @ Q.mT


def gaussians(d: int, settings: dict, seed: int) -> float:
    """L2-UVP: 100 E|T(x) - T*(x)|^2 / Var(y)."""
    generator = torch.Generator().manual_seed(seed)
    S1, S2 = covariance(d, generator), covariance(d, generator)
    m1, m2 = (torch.randn(d, generator=generator, dtype=torch.float64) for _ in range(2))

    def draw(n: int, m: Tensor, S: Tensor) -> Tensor:
        return m + torch.randn(n, d, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(S).mT

    x, y, new = draw(2048, m1, S1), draw(2048, m2, S2), draw(4096, m1, S1)
    truth = m2 + (new - m1) @ gaussian_map(S1, S2)
    found = TransportMap(d, seed=seed, **settings).fit(x, y).transform(new)
    return 100 * float((found - truth).square().sum(1).mean() / S2.trace())


def planar(kind: str, settings: dict, seed: int) -> float:
    """Relative L2 distance to the exact map between the samples."""
    generator = torch.Generator().manual_seed(seed)

    def four(scale: float, degrees: float) -> Tensor:
        angles = math.radians(degrees) + torch.arange(1024) % 4 * math.pi / 2
        centres = scale * torch.stack([angles.cos(), angles.sin()], 1)
        return centres + 0.1 * torch.randn(1024, 2, generator=generator)

    x = 0.5 * torch.randn(1024, 2, generator=generator) if kind == "one to four" else four(2.0, 0.0)
    y = {"four nearer": four(1.0, 0.0), "four turned": four(2.0, 30.0), "one to four": four(2.0, 0.0)}[kind]
    best = barycentric_map(solve(torch.cdist(x.double(), y.double()).square(), method="exact").plan, y.double())
    found = TransportMap(2, seed=seed, **settings).fit(x, y).transform(x)
    return float((found - best).norm(dim=1).mean() / (best - x).norm(dim=1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--starts", nargs="+", default=["gaussian", "identity"])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    console = Console(width=150)
    problems = [("2-D", 2), ("8-D", 8), ("32-D", 32), "four nearer", "four turned", "one to four"]
    table = Table("method", "start", *(f"{p[0]}, UVP %" if isinstance(p, tuple) else p for p in problems))
    for method in given.methods:
        for start in given.starts if method != "gaussian" else ["gaussian"]:
            settings, cells = {"method": method, "start": start}, []
            for problem in track(problems, description=f"{method} from {start}", transient=True):
                measure, what = (gaussians, problem[1]) if isinstance(problem, tuple) else (planar, problem)
                figures = torch.tensor([measure(what, settings, seed) for seed in range(given.seeds)])
                cells.append(f"{figures.mean():.3f} ({figures.amin():.3f} to {figures.amax():.3f})")
            table.add_row(method, start, *cells)
            console.print(f"{method} from {start}: {', '.join(cells)}")
    console.print(table)


if __name__ == "__main__":
    main()
