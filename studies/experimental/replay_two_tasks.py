"""Forgetting, with and without replay: `python -m studies.experimental.replay_two_tasks [--seeds 5] [--cache FILE]`.

A linear head on a frozen EfficientNet-Lite0 learns five classes of Fashion-MNIST, then the five others, by a plain
`transformers.Trainer`. The network is frozen, so that the head is trained on its features, computed once; the price of
a step is measured with the network in it, on images of 64 pixels, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from hf_reprot.experimental.latent import LatentTransport
from hf_reprot.experimental.latent.replay import FeatureReplayCallback
from studies.experimental.lite0_features import Student, backbone, fashion_features, images, rows, split
from studies.experimental.rival_features import GaussianFeatures


def train(student: Student, x: Tensor, y: Tensor, steps: int, seed: int, replay: FeatureReplayCallback | None) -> float:
    """Seconds of computing that it took."""
    settings = {"per_device_train_batch_size": 32, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}
    settings |= {"report_to": "none", "save_strategy": "no", "logging_steps": 1000, "max_steps": steps, "seed": seed}
    arguments = TrainingArguments(tempfile.gettempdir(), **settings)
    callbacks = [replay] if replay else []
    trainer = Trainer(student, arguments, train_dataset=TensorDataset(x, y), data_collator=rows, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    began = time.process_time()
    trainer.train()
    return time.process_time() - began


def two_tasks(data: dict[str, Tensor], seed: int, steps: int) -> dict[str, list[float]]:
    """Of each way: accuracy in % on the first five classes before and after the second task, and on the second five."""
    (x, y), _, (tx, ty) = split(data, seed, sizes=(2000, 1, 2000))
    scale, old = x.std().item(), y < 5
    torch.manual_seed(seed)
    first = Student(nn.Identity(), scale)
    train(first, x[old], y[old], steps, seed, None)
    sources = {"no replay": None, "transport": LatentTransport(seed=seed).fit(x[old] / scale, y[old])}
    sources["real features"] = LatentTransport(mixing=0.0, steps=1).fit(x[old] / scale, y[old])
    for name in ("full", "diagonal"):
        sources[f"Gaussians, {name}"] = GaussianFeatures(x[old] / scale, y[old], full=name == "full")
    found = {}
    for name, source in sources.items():
        student = Student(nn.Identity(), scale)
        student.load_state_dict(first.state_dict())
        replay = FeatureReplayCallback(source, "classifier", batch_size=32, seed=seed) if source else None
        train(student, x[~old], y[~old], steps, seed, replay)
        before, after = (m.classifier(tx / scale).argmax(1) == ty for m in (first, student))
        parts = (before[ty < 5], after[ty < 5], after[ty >= 5])
        found[name] = [100 * part.float().mean().item() for part in parts]
    return found


def step_time(data: dict[str, Tensor], blocks: int = 5, steps: int = 10) -> tuple[float, float]:
    """Median seconds of a step without and with replay, the network in it, in turns."""
    (pixels, labels), (x, y) = images("test"), (data["train"][:2000], data["train_labels"][:2000])
    student, seconds = Student(backbone(), 1.0), ([], [])
    replay = FeatureReplayCallback(LatentTransport().fit(x, y), "classifier", batch_size=32)
    for block in range(2 * blocks + 2):
        spent = train(student, pixels[:512], labels[:512], steps, block, replay if block % 2 else None) / steps
        if block > 1:
            seconds[block % 2].append(spent)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150, help="of each task, of 32 images")
    parser.add_argument("--cache", type=Path, help="where the network's features are kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = fashion_features(given.cache or Path(folder) / "features.safetensors")
    found = defaultdict(list)
    for seed in range(given.seeds):
        for name, scores in two_tasks(data, seed, given.steps).items():
            found[name].append([*scores, scores[0] - scores[1]])
            print(f"seed {seed}, {name}: " + ", ".join(f"{s:.1f}" for s in found[name][-1]), flush=True)
    print("accuracy on the first five classes before and after, on the second five, forgetting")
    for name, scores in found.items():
        table = torch.tensor(scores)
        print(f"{name}: " + ", ".join(f"{m:.1f} ± {s:.1f}" for m, s in zip(table.mean(0), table.std(0), strict=True)))
    plain, replayed = step_time(data)
    print(f"a step: {1e3 * plain:.1f} ms, with replay {1e3 * replayed:.1f} ms ({replayed / plain - 1:+.1%})")


if __name__ == "__main__":
    main()
