"""Features of one network mapped into another's space, whose frozen head then reads them.

EfficientNet-Lite0 and Lite1 (ImageNet weights) on Fashion-MNIST: each sees its own half of the training images, so that
no image has both features. 64 principal components on both sides, the signs by skewness; a linear head on Lite1's.

python -m studies.experimental.map_unpaired_features features.safetensors    # computed once, read the next time
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import AutoModelForImageClassification

from examples.carriers import efficientnet_lite
from hf_reprot.experimental.maps import TransportMap
from studies.images import load

DIM, PAIRS = 64, (0, 30, 100)


@torch.no_grad()
def features(count: int) -> dict[str, Tensor]:
    """What both networks make of `count` training images and 2,000 test images, before their heads."""
    images = load("fashion-mnist", size=96, pool=count, validation=2, test=2000)
    found = {"train_y": images.train.labels, "test_y": images.test.labels}
    for number in (0, 1):
        with tempfile.TemporaryDirectory() as folder:
            efficientnet_lite.write(folder, number)
            net = AutoModelForImageClassification.from_pretrained(folder).eval().timm_model
        for split, part in (("train", images.train), ("test", images.test)):
            blocks = track(part.pixels.split(200), description=f"Lite{number}, {split}", transient=True)
            pooled = [net.forward_head(net.forward_features(block), pre_logits=True) for block in blocks]
            found[f"{split}{number}"] = torch.cat(pooled)
    return found


def components(known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and principal directions that all have positive skewness: the one thing that fixes signs without pairs."""
    mean = known.mean(0)
    W = torch.linalg.svd(known - mean, full_matrices=False).Vh[:DIM].T
    return mean, W * ((known - mean) @ W).pow(3).mean(0).sign()


def run(data: dict[str, Tensor], seed: int) -> dict[str, float]:
    """Test accuracies in %."""
    order = torch.randperm(len(data["train_y"]), generator=torch.Generator().manual_seed(seed))
    i, j = order.chunk(2)
    (m0, W0), (m1, W1) = components(data["train0"][i]), components(data["train1"][j])
    x, new = ((z - m0) @ W0 for z in (data["train0"][i], data["test0"]))
    y, own, twins = ((z - m1) @ W1 for z in (data["train1"][j], data["test1"], data["train1"][i]))
    scale = y.std()  # one for all components: for the head's optimiser
    head = LogisticRegression(C=0.1, max_iter=2000).fit((y / scale).numpy(), data["train_y"][j].numpy())

    def accuracy(z: Tensor) -> float:
        return 100 * head.score((z / scale).numpy(), data["test_y"].numpy())

    results = {"Lite1's own features": accuracy(own)}
    for k in (*PAIRS, len(i)):  # so many of x with their twins are seen
        a, b = x[:k] - x[:k].mean(0), twins[:k] - twins[:k].mean(0)
        U, _, Vh = torch.linalg.svd(a.T @ b)
        penalty = 0.1 * k * x.var(0).mean() * torch.eye(DIM)
        ways = {"ridge": torch.linalg.solve(a.T @ a + penalty, a.T @ b), "Procrustes": U @ Vh} if k else {}
        for way, A in ways.items() or [("signs", torch.eye(DIM))]:
            results[f"{k} pairs, {way}"] = accuracy((new - x[:k].mean(0)) @ A + twins[:k].mean(0) if k else new)
            for method in ("gaussian", "entropic") if k < len(i) else ():
                found = TransportMap(DIM, method, seed=seed).fit(x @ A, y).transform(new @ A)
                results[f"{k} pairs, {way}, then {method}"] = accuracy(found)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="a safetensors file: read, or written where there is none")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if not given.features.exists():
        save_file(features(given.images), given.features)
    data = load_file(given.features)
    found = [run(data, seed) for seed in track(range(given.seeds), description="seeds", transient=True)]
    table = Table("Lite0's features under Lite1's head", "test accuracy, %")
    for name in found[0]:
        figures = torch.tensor([result[name] for result in found])
        table.add_row(name, f"{figures.mean():.1f} ± {figures.std(correction=int(len(found) > 1)):.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
