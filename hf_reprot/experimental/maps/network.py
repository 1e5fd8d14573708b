"""A map that a network learns: a linear start and a residual that begins at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def perceptron(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """`depth` hidden layers with SiLU: smooth, since potentials are differentiated."""
    layers: list[nn.Module] = []
    for before in [inputs, *[width] * (depth - 1)]:
        layers += [nn.Linear(before, width), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Residual(nn.Module):
    """x -> A x + N(x) of centred points in units of the scale, with N = 0 at first: training begins at the start."""

    def __init__(self, start: nn.Module, dim: int, width: int, depth: int):
        super().__init__()
        self.start = start
        self.net = perceptron(dim, dim, width, depth)
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        return self.start(x) + self.net(x)


@dataclass
class Schedule:
    """How long a network is trained, on what, and by whom it is judged.

    Attributes:
        steps: At most.
        batch_size: Points of each side in a step.
        learning_rate: Of Adam; falls to 0 along a cosine.
        patience: Checks without a gain after which training stops.
        check_every: Steps between two checks.
        referee: Map -> how far its images of held-out points are from held-out targets.
        generator: Draws the batches, on the points' device.
        track: Shows progress: an iterator over the steps.
    """

    steps: int
    batch_size: int
    learning_rate: float
    patience: int
    check_every: int
    referee: Callable[[nn.Module], float]
    generator: torch.Generator
    track: Callable[[Iterable[int]], Iterable[int]]

    def draw(self, points: Tensor) -> Tensor:
        """A batch of points, drawn with replacement where there are more than a batch."""
        if len(points) <= self.batch_size:
            return points
        rows = torch.randint(len(points), (self.batch_size,), generator=self.generator, device=points.device)
        return points[rows]


def train(model: Residual, step: Callable[[float], None], schedule: Schedule) -> list[tuple[int, float]]:
    """Runs `step(share of all steps made)`, and leaves the model with the weights that the referee liked best.

    Returns:
        The referee's figures, with the number of steps made: the first one is the start's.
    """
    history = [(0, schedule.referee(model))]
    best, kept, waited = history[0][1], copy.deepcopy(model.state_dict()), 0
    for k in schedule.track(range(1, schedule.steps + 1)):
        step((k - 1) / schedule.steps)
        if k % schedule.check_every and k != schedule.steps:
            continue
        history.append((k, schedule.referee(model)))
        if history[-1][1] < best:
            best, kept, waited = history[-1][1], copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
            if waited >= schedule.patience:
                break
    model.load_state_dict(kept)
    return history
