"""A network that learns a transport map against an adversary (W2GAN), and held-out points to judge a map by."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .divergence import RELATIVE_EPSILON, half_squares, halves_divergence
from .network import Residual, Schedule, perceptron, train

# W2GAN's own settings: critic steps for each step of the map, its learning rate in units of the map's.
_CRITIC_STEPS, _CRITIC_RATE = 5, 5.0


class Critic(nn.Module):
    """The two potentials of W2GAN on targets y and mapped points z: psi(z) = -phi(z) + slack(z).

    With c(y, z) = |y - z|^2 / (2 d), the critic minimises (Leygonie et al., 2019)

        - E[phi(y) + psi(z)] + penalty * (E[(phi + psi - c)_+^2] on pairs (y, z), and on random interpolates of them
                                          + E[(phi(y) + psi(Ty) - c(y, Ty))^2] + E[(phi(Tz) + psi(z) - c(Tz, z))^2])

    where Ty = y - d grad phi(y), Tz = z - d grad psi(z) are what the potentials themselves send points to. The cost is
    per dimension, so that one penalty does for all.
    """

    def __init__(self, dim: int, width: int, depth: int):
        super().__init__()
        self.dim = dim
        self.first, self.slack = (perceptron(dim, 1, width, depth) for _ in range(2))

    def phi(self, y: Tensor) -> Tensor:
        return self.first(y).squeeze(-1)

    def psi(self, z: Tensor) -> Tensor:
        return (self.slack(z) - self.first(z)).squeeze(-1)

    def loss(self, y: Tensor, z: Tensor, penalty: float, generator: torch.Generator) -> Tensor:
        y, z = y.detach().requires_grad_(), z.detach().requires_grad_()
        phi, psi = self.phi(y), self.psi(z)
        d_phi, d_psi = (torch.autograd.grad(v.sum(), p, create_graph=True)[0] for v, p in ((phi, y), (psi, z)))
        above = phi[:, None] + psi - half_squares(y, z) / self.dim
        # Random points between any target and any image; as many as the shorter side has.
        n = min(len(y), len(z))
        u, v = (self._between(y.detach()[:n], z.detach()[:n], generator) for _ in range(2))
        between = self.phi(u) + self.psi(v) - self._cost(u, v)
        to, back = y - self.dim * d_phi, z - self.dim * d_psi
        equal_y = phi + self.psi(to) - self._cost(y, to)
        equal_z = self.phi(back) + psi - self._cost(back, z)
        broken = above.clamp_min(0).square().mean() + between.clamp_min(0).square().mean()
        return penalty * (broken + equal_y.square().mean() + equal_z.square().mean()) - phi.mean() - psi.mean()

    def _cost(self, y: Tensor, z: Tensor) -> Tensor:
        return (y - z).square().sum(-1) / (2 * self.dim)

    def _between(self, y: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        share = torch.rand(len(y), 1, generator=generator, device=y.device)
        return share * y + (1 - share) * z


def by_w2gan(
    model: Residual, x: Tensor, y: Tensor, schedule: Schedule, penalty: float, width: int, depth: int
) -> list[tuple[int, float]]:
    """The map minimises E[psi(T(x))] against the `Critic`: its images move along the geodesic to the targets."""
    critic = Critic(x.shape[1], width, depth).to(x.device)
    rate = schedule.learning_rate
    betas = (0.5, 0.9)
    optimizer = torch.optim.Adam(model.net.parameters(), lr=rate, betas=betas)
    against = torch.optim.Adam(critic.parameters(), lr=_CRITIC_RATE * rate, betas=betas)

    def step(share: float) -> None:
        _set_rate(optimizer, rate, share)
        _set_rate(against, _CRITIC_RATE * rate, share)
        for _ in range(_CRITIC_STEPS):
            with torch.no_grad():
                mapped = model(schedule.draw(x))
            loss = critic.loss(schedule.draw(y), mapped, penalty, schedule.generator)
            against.zero_grad()
            loss.backward()
            against.step()
        loss = critic.psi(model(schedule.draw(x))).mean() * x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train(model, step, schedule)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * (1 + math.cos(math.pi * share)) / 2


_SHARE, _MOST = 0.2, 512
FOLDS = 5

Referee = Callable[[nn.Module], float]


def referee(x: Tensor, y: Tensor) -> Referee:
    """Map -> `halves_divergence` of T(x) and y, with one epsilon whatever the map."""
    epsilon = RELATIVE_EPSILON * half_squares(y, y).mean().clamp_min(torch.finfo(y.dtype).tiny)

    @torch.no_grad()
    def judge(candidate: nn.Module) -> float:
        figure = float(halves_divergence(candidate(x), y, epsilon))
        return figure if math.isfinite(figure) else math.inf

    return judge


def held_out(points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Most of the points, and a fifth (512 at most) to judge by."""
    order = _order(points, generator)
    held = min(_MOST, math.ceil(_SHARE * len(points)))
    return points[order[held:]], points[order[:held]]


def folds(points: Tensor, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Five ways to hold a fifth of the points out, each point once."""
    parts = _order(points, generator).chunk(FOLDS)
    return [
        (points[torch.cat([p for j, p in enumerate(parts) if j != k])], points[part]) for k, part in enumerate(parts)
    ]


def some(points: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """The points, or as many of them by chance."""
    return points if len(points) <= most else points[_order(points, generator)[:most]]


def _order(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(points), generator=generator).to(points.device)
