"""Features learnt for k nearest neighbours, against features learnt by cross-entropy and against raw pixels.

    python -m studies.experimental.soft_knn    # Fashion-MNIST out of a Debian package, about 3 minutes a seed on a core

A small CNN is trained on 6,000 images of 14 x 14 pixels, once by `SoftKNNHead` (100 queries against 100 candidates a
step) and once by cross-entropy; both are judged by plain k-NN among the training images' features, on 3,000 test
images. Softness is chosen by the accuracy on a validation split, seed by seed.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.carriers import fashion_mnist
from hf_reprot.experimental.topk.losses import SoftKNNHead

K, CLASSES, EPSILONS = 9, 10, (0.02, 0.05, 0.1, 0.2, 0.5)


def images(split, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(count, 1, 14, 14) between 0 and 1, and (count,) labels."""
    rows = split.shuffle(seed=seed).select(range(count))
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in rows["image"]])
    return F.avg_pool2d(pixels[:, None].float() / 255, 2), torch.tensor(rows["label"])


def network(outputs: int) -> nn.Sequential:
    layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(64 * 9, 64), nn.ReLU(), nn.Linear(64, outputs))


def knn_accuracy(candidates: Tensor, labels: Tensor, queries: Tensor, truth: Tensor) -> float:
    """Share of queries whose class most of the k nearest candidates have."""
    nearest = torch.cdist(queries.flatten(1), candidates.flatten(1)).topk(K, largest=False).indices
    return (labels[nearest].mode(1).values == truth).float().mean().item()


def train(data, seed: int, epochs: int, epsilon: float | None):
    """By soft k-NN, or by cross-entropy where epsilon is None: the network that gives the features."""
    torch.manual_seed(seed)
    x, y = data
    net = network(64 if epsilon else CLASSES)
    head = SoftKNNHead(CLASSES, K, epsilon) if epsilon else None
    steps = epochs * (len(x) // 200)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        if step % (len(x) // 200) == 0:
            order = torch.randperm(len(x))
        rows = order[200 * (step % (len(x) // 200)) :][:200]
        out, labels = net(x[rows]), y[rows]
        loss = head(out[:100], labels[:100], out[100:], labels[100:]).loss if head else F.cross_entropy(out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def features(net: nn.Sequential, x: Tensor, soft: bool) -> Tensor:
    """What k-NN sees: unit length, as in training; of cross-entropy, what goes into the last layer."""
    return F.normalize(net(x) if soft else net[:-1](x), dim=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()
    found, sets = [], fashion_mnist.load()
    for seed in range(given.seeds):
        (x, y), (test, truth) = images(sets["train"], 7000, seed), images(sets["test"], 3000, seed)
        data, (val, val_truth) = (x[:6000], y[:6000]), (x[6000:], y[6000:])
        scores = {}
        for epsilon in (*EPSILONS, None):
            net, soft = train(data, seed, given.epochs, epsilon), epsilon is not None
            known = features(net, data[0], soft), data[1]
            asked = (val, val_truth), (test, truth)
            scores[epsilon] = [round(knn_accuracy(*known, features(net, q, soft), t), 3) for q, t in asked]
        best = max(EPSILONS, key=lambda e: scores[e][0])
        found.append([scores[best][1], scores[None][1], round(knn_accuracy(*data, test, truth), 3)])
        print(f"seed {seed}: eps {best}; soft k-NN, cross-entropy features, pixels: {found[-1]}")
        print(f"    validation and test by eps: {scores}", flush=True)
    table = torch.tensor(found)
    print("mean    ", [f"{v:.2%}" for v in table.mean(0)], "deviation", [f"{v:.2%}" for v in table.std(0)])
    for name, other in (("cross-entropy features", 1), ("pixels", 2)):
        gain = table[:, 0] - table[:, other]
        print(f"soft k-NN against {name}: {gain.mean():+.2%} ± {gain.std():.2%}, ahead in {int((gain > 0).sum())}")
