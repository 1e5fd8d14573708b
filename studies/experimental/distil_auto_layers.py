"""A shallow student from a teacher of twice its depth: layer pairs found by transport against layers picked by hand.

    python -m studies.experimental.distil_auto_layers

A ViT of 8 blocks, trained on 1,000 handwritten digits, teaches ViTs of 4 blocks that see few labels. By hand, block i
goes with block 2i + 1 and the head's input with the head's input; "auto" finds the pairs, without and with a prior on
their order. Prints test accuracies over seeds and paired 95 % intervals (Student's t) to the pairs picked by hand.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from transformers import PrinterCallback, ViTConfig, ViTForImageClassification, logging, set_seed

from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.utils.running import accuracy

TEST = 697
HAND = [*(f"block:{i}=block:{2 * i + 1}" for i in range(4)), "last=last"]
METHODS = {
    "no transfer": {"ot_weight": 0.0},
    "last layer": {"layer_pairs": "last"},
    "by hand": {"layer_pairs": HAND},
    "auto": {"layer_pairs": "auto"},
    "auto, order prior 1": {"layer_pairs": "auto", "layer_order_prior": 1.0},
}


def digits() -> tuple[list[dict], list[dict]]:
    """1,100 images to train on and 697 to test on, 8 x 8 pixels."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"pixel_values": pixels[i], "labels": int(labels[i])} for i in order]
    return rows[TEST:], rows[:TEST]


def vit(depth: int, width: int, seed: int) -> ViTForImageClassification:
    set_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": depth, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **sizes))


def train(model, teacher, data, test, seed: int, steps: int, **settings) -> tuple[float, OTTransferTrainer]:
    """Test accuracy and the trainer."""
    defaults = {"per_device_train_batch_size": 64, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "seed": seed}
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": steps}
    settings = {"ot_weight": 0.0, "warmup_steps": 20, "max_steps": steps, "use_cpu": True} | defaults | quiet | settings
    with tempfile.TemporaryDirectory() as folder:
        trainer = OTTransferTrainer(
            model=model,
            teacher_model=teacher if settings["ot_weight"] > 0 else None,
            args=OTTransferConfig(output_dir=folder, **settings),
            train_dataset=data,
            eval_dataset=test,
            compute_metrics=accuracy,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        return trainer.evaluate()["eval_accuracy"], trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ot-weight", type=float, default=2.0)
    given = parser.parse_args()
    logging.set_verbosity_error()
    data, test = digits()
    teacher = vit(8, 64, seed=0)
    print(f"teacher, 8 blocks: {train(teacher, None, data, test, 0, 600)[0]:.3f}")
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    for seed in range(given.seeds):
        for name, changes in METHODS.items():
            settings = {"ot_weight": given.ot_weight, "plan_momentum": 0.9, "layer_refresh_steps": 50} | changes
            few = data[seed * given.labels :][: given.labels]
            score, trainer = train(vit(4, 32, 100 + seed), teacher, few, test, seed, given.steps, **settings)
            found[name].append(score)
            depth = [plan.depth_correlation for plan in trainer.transfer.layer_plans] if "auto" in name else ""
            print(f"seed {seed}: {name:20s} {score:.3f} {depth}", flush=True)
    for name, scores in found.items():
        gains = [100 * (a - b) for a, b in zip(scores, found["by hand"], strict=True)]
        half = student_t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        mean, gain = 100 * statistics.fmean(scores), statistics.fmean(gains)
        print(f"{name:20s} {mean:.1f} % against by hand: {gain:+.1f} points [{gain - half:+.1f}, {gain + half:+.1f}]")


if __name__ == "__main__":
    main()
