"""What a feature cache saves: the same training steps with a live ViT-S teacher, from caches of it, and without one.

    python -m examples.cache_teacher                       # digits at 96 pixels, a ViT-S/16 of random weights

What a step costs does not depend on the weights. Every run is a process of its own, for its peak memory, and starts
from the same student: the losses say how near they stay to the live teacher's.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import timm
from rich.console import Console
from rich.table import Table
from transformers import TimmWrapperImageProcessor, TrainerCallback, set_seed

from hf_reprot import ImageCollator, OTTransferConfig, OTTransferTrainer, create_timm_student, load_image_dataset
from hf_reprot.cache import FeatureCache
from hf_reprot.data.dataset_columns import image_columns
from hf_reprot.data.labels import label_names

RUNS = ("no teacher", "live teacher", "cache, float32", "cache, float16")
PLAIN = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1}


class Clock(TrainerCallback):
    wall, cpu = (), ()  # when each step ended, and how much the processor had worked by then

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.wall, self.cpu = (*self.wall, time.perf_counter()), (*self.cpu, time.process_time())


def run(given: argparse.Namespace) -> dict:
    """One build, or one training, in this process: what it took."""
    data = load_image_dataset(given.dataset)["train"].select(range(given.images))
    image, label = image_columns(data)
    sizes = {"input_size": [3, given.size, given.size], "crop_pct": 1.0}
    set_seed(0)
    student = create_timm_student("resnet10t", label_names(data, label), pretrained_cfg=sizes)
    processor = TimmWrapperImageProcessor(pretrained_cfg=student.config.pretrained_cfg)
    collator, folder = ImageCollator(processor, "none", image, label), Path(given.folder) / given.run
    source = {} if given.run == "no teacher" else {"teacher_features": folder}
    if given.run == "live teacher" or given.build:
        teacher = timm.create_model(given.teacher, num_classes=0) if timm.is_model(given.teacher) else given.teacher
        source = {"teacher_model": teacher}
    if given.build:
        start, options = time.perf_counter(), {"dtype": given.run.split()[-1], "batch_size": given.batch}
        built = FeatureCache.build(teacher, data, folder, collator=collator, **options)
        return {"build": time.perf_counter() - start, "size": built.bytes / 1e6}
    weights = {"ot_weight": 10.0, "plan_momentum": 0.9} if source else {"ot_weight": 0.0}
    options = {"max_steps": given.steps, "per_device_train_batch_size": given.batch, **PLAIN, **weights}
    config = OTTransferConfig(output_dir=given.folder, **options)
    source |= {"data_collator": collator, "train_dataset": data, "callbacks": [clock := Clock()]}
    trainer = OTTransferTrainer(model=student, args=config, **source)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"wall": clock.wall, "cpu": clock.cpu, "losses": losses, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vit_small_patch16_224", help="architecture of timm, hub id or folder")
    parser.add_argument("--dataset", default="digits", help='hub id, folder, or "digits"')
    for name, default in {"images": 64, "size": 96, "batch": 16, "steps": 8, "build": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in {"run": None, "folder": tempfile.mkdtemp()}.items():
        parser.add_argument(f"--{name}", default=default)
    given = parser.parse_args()
    if given.run:
        return print("\n" + json.dumps(run(given)))
    table = Table("", "s a step", "CPU s a step (range)", "peak MB", "built in s", "MB on disk", "loss differs by")
    found = {}
    for name in RUNS:
        for build in (1, 0) if name.startswith("cache") else (0,):
            again = [sys.executable, "-m", "examples.cache_teacher", *sys.argv[1:], "--folder", given.folder]
            done = subprocess.run([*again, "--run", name, "--build", str(build)], check=True, stdout=subprocess.PIPE)
            found[name] = found.get(name, {}) | json.loads(done.stdout.splitlines()[-1])
        one, live = found[name], found.get("live teacher", {"losses": ()})
        apart = max((abs(a - b) / b for a, b in zip(one["losses"], live["losses"], strict=False)), default=0)
        wall, cpu = ([b - a for a, b in pairwise(one[name])] for name in ("wall", "cpu"))
        step = f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})"
        more = [f"{one['build']:.0f}", f"{one['size']:.2f}", f"{apart:.1e}"] if "build" in one else []
        table.add_row(name, f"{statistics.median(wall):.2f}", step, f"{one['peak']:.0f}", *more)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
