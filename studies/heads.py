"""A head for few labels on frozen pretrained features: `fit_head` beside logistic regression with fixed penalties.

`python -m studies.heads`
"""

from __future__ import annotations

import argparse
from collections import defaultdict

import numpy as np
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from hf_reprot.models.head import CLASSES, write_head

from . import images, pretrained
from .images import Pixels
from .report import paired, spread
from .upper_stages import few_of_each

NETWORKS = ("efficientnet-lite0", "mobilenet-v2")
LABELS = (12, 19, 37, 125)
OURS, PROBE = "fit_head", "logistic regression, C = 1"
_BATCH = 50


def accuracies(features: np.ndarray, labels: np.ndarray, classes: int, test: tuple[np.ndarray, np.ndarray]):
    """Test accuracy of each head.

    Args:
        features, labels: (n, d) and (n,) to fit to.
        classes: Outputs of the head.
        test: The same of the test images.

    Returns:
        Shares of right answers by name.
    """
    probe = LogisticRegression(C=1.0, max_iter=2000)
    scaled = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    layer = nn.Linear(features.shape[1], classes)
    write_head(layer, features, labels, [str(i) for i in range(classes)], CLASSES)
    with torch.no_grad():
        answers = layer(torch.from_numpy(test[0]).float()).argmax(-1).numpy()
    return {
        OURS: float((answers == test[1]).mean()),
        PROBE: float(probe.fit(features, labels).score(*test)),
        "the same on standardised features": float(scaled.fit(features, labels).score(*test)),
    }


@torch.no_grad()
def _features(network: str, model: nn.Module, data: Pixels) -> np.ndarray:
    made = [
        model.forward_head(model.forward_features(pretrained.normalised(x, network)), pre_logits=True)
        for x in data.pixels.split(_BATCH)
    ]
    return torch.cat(made).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m studies.heads", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="splits of the photo cut-outs")
    seeds = parser.parse_args().seeds
    found: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
    for network in NETWORKS:
        model = pretrained.trunk(network)
        for seed in track(range(seeds), network):
            loaded = images.load("photo-cutouts", size=128, pool=125, validation=24, test=100, split=seed)
            train, test = (_features(network, model, part) for part in (loaded.train, loaded.test))
            for count in LABELS:
                rows = few_of_each(loaded.train.labels.numpy(), count, seed).numpy()
                held = (test, loaded.test.labels.numpy())
                for name, value in accuracies(
                    train[rows], loaded.train.labels[rows].numpy(), loaded.classes, held
                ).items():
                    found[network, count, name][seed] = value
    print(f"Photo cut-outs at 128 pixels, test accuracy in %, {seeds} splits; beside it fit_head less this one.\n")
    for network in NETWORKS:
        names = list(dict.fromkeys(name for key_network, _, name in found if key_network == network))
        print(f"| {network} | " + " | ".join(f"{n} labels | " for n in LABELS) + " |")
        print("|---" * (1 + 2 * len(LABELS)) + "|")
        for name in names:
            cells = []
            for count in LABELS:
                mean, half, _, _ = paired(found[network, count, OURS], found[network, count, name])
                own = "" if name == OURS else f"{100 * mean:+.1f} ± {100 * half:.1f}"
                cells += [spread(list(found[network, count, name].values())), own]
            print(f"| {name} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
