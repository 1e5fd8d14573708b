"""A dense task with few labels: where is the thing that was pasted on a photo? Every position is a sample.

    python -m studies.distil_dense                   # fetches its data; about 10 minutes on one idle core

A small segmentation network learns from 32 masks. EfficientNet-Lite0, which knows ImageNet and no masks, teaches the
layer before its head, position by position or pooled: beside the task's loss; or on 596 scenes without masks, and 32
masks then teach a linear head. The teacher sees a scene at twice the size, once: its maps are kept. Shown is mean IoU.

Experimental: without masks, every way to teach is worth 5 points over an untrained network, and the optimal coupling no
more than a random pairing or FitNet; beside the task's loss nothing helps. `examples/results/dense.jsonl` has the runs.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace

import torch
from torch.utils.data import Dataset, Subset
from transformers import PrinterCallback, logging

from examples.carriers import cutout_scenes
from hf_reprot import OTTransferConfig, OTTransferTrainer
from studies.compare import compare
from studies.images import processor_of
from studies.methods import METHODS, Method
from studies.networks import Remembered
from studies.pretrained import lite
from studies.segmentation import Scenes, Segmenter, linear_head_iou, mean_iou

NAMES = ("FitNet, every position", "every position, random pairing", "every position")
ROWS = {name: METHODS[name] for name in ("student alone", "attention transfer", "transport", *NAMES)}
for name in NAMES:
    free = ROWS[name].settings | {"task_weight": 0.0}
    ROWS[f"{name}, then a linear head"] = replace(ROWS[name], settings=free, label_free=True)
ROWS["nothing, then a linear head"] = Method(label_free=True)


@torch.no_grad()
def remember(scenes: Scenes) -> Remembered:
    """EfficientNet-Lite0's 112 maps at a sixteenth of its images' size, which is an eighth of the student's."""
    model = lite("efficientnet-lite0", 2).timm_model.eval()
    maps = [model.forward_intermediates(x, indices=[3], intermediates_only=True)[0] for x in scenes.large.split(50)]
    return Remembered(torch.cat(maps), torch.zeros(len(scenes), 2))


def train(student: Segmenter, teacher: Remembered | None, data: Dataset, seed: int, steps: int, **settings) -> None:
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
    how = {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "use_cpu": True, **quiet}
    how |= {"per_device_train_batch_size": 16, "remove_unused_columns": False, "layer_pairs": "neck=maps:nchw"}
    with tempfile.TemporaryDirectory() as folder:
        args = OTTransferConfig(output_dir=folder, max_steps=steps, seed=seed, **how | {"ot_weight": 0.0} | settings)
        size = data[0]["pixel_values"].shape[-1]
        trainer = OTTransferTrainer(student, teacher, args, train_dataset=data, processing_class=processor_of(size))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.transfer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--masks", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100, help="on the masks")
    parser.add_argument("--free-steps", type=int, default=300, help="without masks")
    parser.add_argument("--size", type=int, default=64, help="of the student's images")
    parser.add_argument("--results", default="runs/dense.jsonl")
    given = parser.parse_args()
    logging.set_verbosity_error()
    scenes = {name: Scenes(split) for name, split in cutout_scenes.load(size=2 * given.size).items()}
    teacher = remember(scenes["train"])

    def run(method: Method, weight: float, seed: int) -> dict[str, float]:
        student, settings = Segmenter(seed), dict(method.settings)
        taught = teacher if method.weight else None
        settings |= {method.weight[0]: weight} if method.weight else {}
        order = torch.randperm(len(scenes["train"]), generator=torch.Generator().manual_seed(seed)).tolist()
        few = Subset(scenes["train"], order[: given.masks])
        if method.label_free:
            if taught is not None:
                train(student, taught, scenes["train"], seed, given.free_steps, **settings)
            return linear_head_iou(student, "neck", few, {name: scenes[name] for name in ("validation", "test")})
        train(student, taught, few, seed, given.steps, **settings)
        return {name: mean_iou(student, scenes[name]) for name in ("validation", "test")}

    against = ("student alone", "every position, random pairing", "every position, random pairing, then a linear head")
    compare(run, ROWS, seeds=given.seeds, factors=(0.04, 0.2, 1.0), path=given.results, against=against)


if __name__ == "__main__":
    main()
