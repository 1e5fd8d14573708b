"""Does the package work with the oldest versions that it names, and with the newest of all?

    python -m benchmarks.versions [--sides oldest newest] [--python python3.12]

makes one virtual environment with every lower bound of pyproject.toml, exactly, and one with the newest versions that
install together. In each, a student trains for five steps, is evaluated, saved, resumed and loaded again; a table says
what was installed and what came out. Needs a package index; takes minutes and several gigabytes, which are given back.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIDES = ("oldest", "newest")

# Runs inside of each environment.
CHECK = """
import importlib.metadata, json, platform, sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification
from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.models.student import create_timm_student, load_student

folder, names = sys.argv[1], sys.argv[2].split(",")

class Images(torch.utils.data.Dataset):
    pixels = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    def __len__(self):
        return 40
    def __getitem__(self, i):
        return {"pixel_values": self.pixels[i], "labels": torch.tensor(i % 3)}

def teacher():
    torch.manual_seed(1)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                       image_size=32, patch_size=8, num_labels=3)
    return ViTForImageClassification(config)

def trainer(steps):
    torch.manual_seed(0)
    student = create_timm_student("resnet10t", ["a", "b", "c"], pretrained_cfg={"input_size": (3, 32, 32)})
    args = OTTransferConfig(output_dir=folder, use_cpu=True, report_to="none", max_steps=steps, save_steps=3,
                            per_device_train_batch_size=8, logging_steps=1, disable_tqdm=True, ot_weight=1.0)
    return OTTransferTrainer(model=student, teacher_model=teacher(), args=args, train_dataset=Images(),
                             eval_dataset=Images())

run = trainer(5)
run.train()
losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
metrics = run.evaluate()
run.save_model()
resumed = trainer(5)
resumed.train(resume_from_checkpoint=folder + "/checkpoint-3")
def apart(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)
model, images = run.model.eval(), Images.pixels
with torch.no_grad():
    wanted = model(pixel_values=images).logits
    loaded = [load_student(folder), AutoModelForImageClassification.from_pretrained(folder)]
    again = max(float((m.eval()(pixel_values=images).logits - wanted).abs().max()) for m in loaded)
print("RESULT " + json.dumps({
    "versions": {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names},
    "losses": losses, "eval_loss": metrics["eval_loss"], "resumed": apart(model, resumed.model), "loaded": again,
}))
"""


def bounds() -> dict[str, str]:
    """The lower bound of each dependency in pyproject.toml, by the package's name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    found = (re.fullmatch(r"([\w.-]+)>=([\w.]+)", line) for line in project["dependencies"])
    return {match[1]: match[2] for match in found if match is not None}


def requirements(side: str) -> list[str]:
    """What pip is asked for: every lower bound exactly, or every package at its newest."""
    return [f"{name}=={version}" if side == "oldest" else name for name, version in bounds().items()]


def run_side(side: str, python: str) -> dict:
    """Makes the environment of a side, runs the check in it and deletes it.

    Raises:
        RuntimeError: it does not install, or the check fails; the message ends with what the command said last.
    """
    with tempfile.TemporaryDirectory(prefix=f"versions-{side}-") as place:
        own = Path(place) / "venv" / "bin" / "python"
        _call([python, "-m", "venv", str(own.parents[1])])
        options = ["--quiet", "--upgrade"] if side == "newest" else ["--quiet"]
        _call([str(own), "-m", "pip", "install", *options, *requirements(side)])
        settings = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        said = _call([str(own), "-c", CHECK, str(Path(place) / "run"), ",".join(bounds())], cwd=place, env=settings)
    return json.loads(next(line for line in said.splitlines() if line.startswith("RESULT ")).removeprefix("RESULT "))


def _call(command: list[str], **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)[:200]}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def table(found: dict[str, dict]) -> str:
    """A Markdown table of the sides: versions, then results."""
    rows = [["", *found], ["---"] * (len(found) + 1)]
    first = next(iter(found.values()))
    rows += [[name, *(side["versions"][name] for side in found.values())] for name in first["versions"]]
    lines = {
        "loss of steps 1 and 5": lambda side: f"{side['losses'][0]:.4f}, {side['losses'][-1]:.4f}",
        "evaluation's loss": lambda side: f"{side['eval_loss']:.4f}",
        "resumed at step 3: largest difference of a weight": lambda side: f"{side['resumed']:.1g}",
        "saved and loaded: largest difference of a logit": lambda side: f"{side['loaded']:.1g}",
    }
    rows += [[title, *(say(side) for side in found.values())] for title, say in lines.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environments")
    chosen = parser.parse_args()
    print(table({side: run_side(side, chosen.python) for side in chosen.sides}))


if __name__ == "__main__":
    main()
