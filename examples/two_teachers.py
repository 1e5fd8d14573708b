"""Two teachers, each of which knows five digits, and one student that learns all ten.

    python examples/two_teachers.py          # nothing to download

Every seed draws the digits of teacher A, the images, new teachers and students. Once the student sees 600 images
without any label, once 100 images with labels. Prints test accuracies over seeds, on all digits, on A's, on B's, and
paired differences to both teachers with the same terms (controls: with what they control), ± half of the 95 % interval.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from transformers import PrinterCallback, ResNetConfig, ResNetForImageClassification, logging, set_seed

from hf_reprot import OTTransferConfig, OTTransferTrainer, Teacher

OT, KD = {"ot_weight": 2.0}, {"kd_weight": 1.0}
TERMS = {"logits": KD, "transport": OT, "both terms": KD | OT, "random pairing": OT | {"ot_method": "random"}}
TERMS["both terms, random pairing"] = KD | OT | {"ot_method": "random"}
TERMS["transport on all samples"] = OT  # instead of each teacher's own
BLIND, FEW = "without labels", "100 labels"
ROWS = [(BLIND, term, who) for term in ("logits", "both terms") for who in ("A", "B", "both")]
ROWS += [(BLIND, "both terms, random pairing", "both"), (FEW, "no teacher", "")]
ROWS += [(FEW, term, who) for term in ("logits", "transport") for who in ("A", "B", "both")]
ROWS += [(FEW, term, "both") for term in list(TERMS)[2:]]
AGAINST = {"no teacher": "logits", "random pairing": "transport", "transport on all samples": "transport"}
AGAINST["both terms, random pairing"] = "both terms"


def network(classes: int, width: int) -> ResNetForImageClassification:
    sizes = {"hidden_sizes": [width, 2 * width], "depths": [1, 1], "embedding_size": width, "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=classes, **sizes))


def train(model, rows, steps: int, seed: int, teachers=None, **settings) -> ResNetForImageClassification:
    """Trains a model on rows of (image, label); label None: without labels."""
    data = [{"pixel_values": x} | ({} if y is None else {"labels": int(y)}) for x, y in rows]
    settings = {"ot_weight": 0.0, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "warmup_steps": 10} | settings
    settings |= {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "logging_steps": steps, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"output_dir": folder, "max_steps": steps, "per_device_train_batch_size": 64, "use_cpu": True}
        args = OTTransferConfig(**settings)
        trainer = OTTransferTrainer(model=model, teacher_model=teachers, args=args, train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model.eval()


def run_seed(seed: int) -> dict[tuple[str, str, str], list[float]]:
    """Accuracies on all digits, on A's, on B's, of each row."""
    images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    images = (images / 8 - 1).float().view(-1, 1, 8, 8)
    set_seed(seed)
    test, seen, unseen = torch.randperm(len(labels)).split([500, 600, len(labels) - 1100])
    digits, teachers, found = torch.randperm(10).tolist(), {}, {}
    known = {"A": sorted(digits[:5]), "B": sorted(digits[5:])}
    for name, classes in known.items():
        own = [(images[i], classes.index(labels[i])) for i in unseen.tolist() if labels[i] in classes]
        set_seed(seed)
        teachers[name] = train(network(5, 24), own, 200, seed)
    for setting, term, who in ROWS:
        few = setting == FEW
        data = [(images[i], labels[i] if few else None) for i in seen[: 100 if few else None].tolist()]
        where = "all" if "all samples" in term else "own"
        given = [Teacher(teachers[n], name=n, classes=known[n], samples=where) for n in known if who in (n, "both")]
        set_seed(100 + seed)
        settings = TERMS.get(term, {}) | {"task_weight": float(few)}
        student = train(network(10, 12), data, 150, seed, given or None, **settings)
        with torch.no_grad():
            right = student(images[test]).logits.argmax(1) == labels[test]
        a = torch.isin(labels[test], torch.tensor(known["A"]))
        found[setting, term, who] = [100 * part.float().mean().item() for part in (right, right[a], right[~a])]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    logging.set_verbosity_error()
    runs = []
    for seed in range(parser.parse_args().seeds):
        runs.append(run_seed(seed))
        print(f"seed {seed} done", flush=True)
    for row in ROWS:
        scores = [[run[row][i] for run in runs] for i in range(3)]
        text = "  ".join(f"{statistics.fmean(s):5.1f} ± {statistics.stdev(s):4.1f}" for s in scores)
        gains = [run[row][0] - run[row[0], AGAINST.get(row[1], row[1]), "both"][0] for run in runs]
        half = student_t.ppf(0.975, len(gains) - 1) * statistics.stdev(gains) / len(gains) ** 0.5
        print(f"{row[0]:14s} {row[1]:26s} {row[2]:4s} {text}  to both {statistics.fmean(gains):+5.1f} ± {half:.1f}")


if __name__ == "__main__":
    main()
