"""Which layers of two networks go together: found by transport between neurons and between layers.

    python -m studies.experimental.match_layers

Small networks on the handwritten digits of scikit-learn: a copy with permuted neurons, a teacher against three of its
own layers in another order, and networks trained from different seeds, of equal and of different depth. Beside each
plan, the cheap control: every student layer takes the teacher layer that costs least ("greedy").
"""

from __future__ import annotations

import argparse
import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from hf_reprot.features.matching import LayerPlan, match_layers

images, digits = load_digits(return_X_y=True)
X, Y = torch.tensor(images / 16 - 0.5, dtype=torch.float32), torch.tensor(digits)


class MLP(nn.Sequential):
    """`depth` blocks and a head; without normalisation, deep ones learn layers that have less of an order."""

    def __init__(self, depth: int, width: int = 64, norm: bool = True):
        middle = nn.LayerNorm if norm else nn.Identity
        sizes = [64] + [width] * depth
        blocks = [nn.Sequential(nn.Linear(d, width), middle(width), nn.ReLU()) for d in sizes[:-1]]
        super().__init__(*blocks, nn.Linear(width, 10))


def trained(depth: int, seed: int, norm: bool = True, steps: int = 600) -> MLP:
    torch.manual_seed(seed)
    model = MLP(depth, norm=norm)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3 if norm else 5e-4)
    for _ in range(steps if norm else 2 * steps):
        batch = torch.randint(0, 1300, (64,))
        loss = nn.functional.cross_entropy(model(X[batch]), Y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def permuted(model: MLP, seed: int) -> MLP:
    """The same function, with the neurons of every hidden layer in another order."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    *blocks, head = model
    for before, after in zip(blocks, [*blocks[1:], [head]], strict=True):
        order = torch.randperm(before[0].out_features)
        for module in before[:2]:
            for parameter in module.parameters():
                parameter.data = parameter.data[order]
        after[0].weight.data = after[0].weight.data[:, order]
    return model


def matched(student: MLP, teacher: MLP, layers: list[int] | None = None) -> LayerPlan:
    ours = [str(i) for i in layers or range(len(student) - 1)]
    return match_layers(
        student, teacher, [X], student_layers=ours, teacher_layers=[str(i) for i in range(len(teacher) - 1)]
    )


def row(values: list[float]) -> str:
    numbers = torch.tensor(values)
    return f"{numbers.mean():.3f} ± {numbers.std():.3f} (least {numbers.min():.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    teacher = trained(6, seed=0)
    copied = permuted(teacher, seed=1)
    print(f"permuted copy: mass on the diagonal {matched(copied, teacher).plan.trace():.4f}")
    plan = matched(copied, teacher, [4, 0, 3]).plan
    print(f"layers 4, 0, 3 of the copy: every block of the teacher goes to (rows) with\n{plan}")
    for norm in (True, False):
        for depth in (6, 3, 12):
            found, greedy, used = [], [], []
            for seed in range(given.seeds):
                plan = matched(trained(6, 10 + seed, norm), trained(depth, 110 + seed, norm))
                found.append(plan.depth_correlation)
                taken = plan.greedy()
                hard = torch.nn.functional.one_hot(torch.tensor(taken), depth).float() / 6
                greedy.append(LayerPlan(hard, plan.cost, [], []).depth_correlation)
                used.append(len(set(taken)))
            name = f"6 against {depth:2d} layers, {'LayerNorm' if norm else 'no normalisation'}"
            print(f"{name}: depth correlation {row(found)}; greedy {row(greedy)}, uses {used} of {depth}", flush=True)


if __name__ == "__main__":
    main()
