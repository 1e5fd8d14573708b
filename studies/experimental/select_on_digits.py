"""Handwritten digits: a ViT learns from 60 labels and the 96 neurons of a ResNet, from all of them or from 24.

python -m studies.experimental.select_on_digits           # nothing to download, about 5 minutes on one core
"""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from hf_reprot.data.digits import load_digits_dataset

from .select_neurons import separation, show, train, vit


def digit_accuracy(seed: int) -> dict[str, float]:
    sets = load_digits_dataset(seed)
    images = {}
    for name in ("train", "test"):
        pixels = sets[name].with_format("torch")[:]
        x = F.interpolate(torch.stack(list(pixels["image"])).float() / 127.5 - 1, size=16)
        images[name] = x.expand(-1, 3, -1, -1), torch.as_tensor(pixels["label"])
    x, y = images["train"]
    torch.manual_seed(seed)
    net = ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 96], depths=[1] * 3, layer_type="basic", num_labels=10)
    teacher = ResNetForImageClassification(net)
    train(teacher, None, (x, y), seed, 200, ot_weight=0.0, plan_momentum=0.0)
    with torch.no_grad():
        t = teacher.eval().resnet(x).pooler_output.flatten(1)
    few = torch.cat([(y == c).nonzero().flatten()[:6] for c in range(10)])
    ways = {"no transfer": {"ot_weight": 0.0}, "all 96 neurons": {}, "24, learned by task": {"select_k": 24}}
    ways["24, learned by transport"] = {"select_k": 24, "select_by": "transport", "plan_momentum": 0.0}
    fixed = {"at random": torch.randperm(96)[:24], "of largest variance": t.var(0).topk(24).indices}
    fixed["that tell classes apart"] = separation(t[few], y[few]).topk(24).indices
    for name, rows in fixed.items():
        ways[f"24 {name}"] = {"select_k": 24, "select_until": 1e-9, "fixed": rows}
    run = {"data": (x[few], y[few]), "test": images["test"], "seed": seed, "steps": 100}
    results = {}
    for name, settings in ways.items():
        trainer = train(vit(10, seed), teacher, **run, **{"ot_weight": 2.0, "learning_rate": 1e-3, **settings})
        results[name] = trainer.evaluate()["eval_accuracy"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    show("digits: test accuracy", [digit_accuracy(seed) for seed in range(given.seeds)])


if __name__ == "__main__":
    main()
