"""A stranger's first hour, by commands alone: clone, demo, a folder of own images, a push, and a load elsewhere.

    python -m benchmarks.strangers_path
    python -m benchmarks.strangers_path --install        # into a new environment, from the package index
    python -m benchmarks.strangers_path --steps 100 --seeds 4

The Hub is a local server that speaks its HTTP API. Where the student is loaded at the end, this package cannot be
imported. Exit status 1, with the output, where a step fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from sklearn.datasets import load_digits

from tests.hub_server.fixtures import WRITE_TOKEN, add_users
from tests.hub_server.server import HubServer

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "ada/digits-student"
ELSEWHERE = """
import sys
from PIL import Image
sys.modules["hf_reprot"] = None  # not here
from transformers import pipeline
answers = pipeline("image-classification", model="{repository}", device="cpu")(Image.open("{image}"))
print(answers[0]["label"], len(answers))
"""


class Steps:
    """Runs the steps one after the other and says how long each took."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment = folder, environment

    def __call__(self, title: str, command: Sequence[str], **more: str) -> str:
        """Runs a command; ends everything where it fails."""
        began = time.perf_counter()
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment | more, capture_output=True, text=True, check=False
        )
        print(f"{time.perf_counter() - began:6.1f} s  {title}", flush=True)
        if done.returncode:
            raise SystemExit(f"{title} failed: {' '.join(command)}\n{done.stdout}\n{done.stderr}")
        return done.stdout


def write_photos(folder: Path, train: int = 20, test: int = 8) -> Path:
    """A folder of images with one subfolder a class, as a user has it; returns one of the test images."""
    from PIL import Image

    digits = load_digits()
    for label in range(10):
        rows = (digits.target == label).nonzero()[0]
        for split, some in (("train", rows[:train]), ("test", rows[train : train + test])):
            place = folder / split / f"digit-{label}"
            place.mkdir(parents=True)
            for row in some:
                pixels = (digits.images[row] * 15).clip(0, 255).astype("uint8")
                Image.fromarray(pixels).resize((32, 32)).save(place / f"{row}.png")
    return next((folder / "test" / "digit-3").iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install into a new environment")
    parser.add_argument("--seeds", type=int, default=1, help="of the demo")
    parser.add_argument("--steps", type=int, default=20, help="of the demo and of the training")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, HubServer(Path(temporary) / "hub") as hub:
        add_users(hub)
        folder = Path(temporary) / "stranger"
        folder.mkdir()
        run = Steps(folder, dict(os.environ))
        run("clone", ["git", "clone", "-q", str(ROOT), "hf-reprot"])
        python = sys.executable
        if given.install:
            run("new environment", [python, "-m", "venv", "env"])
            python = str(folder / "env" / "bin" / "python")
            run("pip install -e .", [python, "-m", "pip", "install", "-q", "-e", "hf-reprot"])
        else:
            run.environment["PYTHONPATH"] = str(folder / "hf-reprot")
        command = [python, "-m", "hf_reprot.cli"]
        counts = [f"--seeds={given.seeds}", f"--steps={given.steps}"]
        print(run("hf-reprot demo", [*command, "demo", "demo", *counts]))
        image = write_photos(folder / "photos")
        recipe = ["--dataset", "photos", "--student", "resnet10t", "--image_size", "32", "--teacher", "demo/student"]
        recipe += ["--output_dir", "student", "--max_steps", str(given.steps), "--report_to", "none", "--use_cpu"]
        print(run("hf-reprot train on own images", [*command, "train", *recipe]))
        online = hub.env(token=WRITE_TOKEN)
        print(run("hf-reprot push", [*command, "push", "student", REPOSITORY], **online))
        found = hub.files(REPOSITORY)
        print("on the Hub:", ", ".join(sorted(found)))
        load = ELSEWHERE.format(repository=REPOSITORY, image=image)
        run.environment.pop("PYTHONPATH", None)
        said = run("load elsewhere, with transformers alone", [python, "-c", load], **hub.env(token=None))
        label, count = said.split()[-2:]
        if not label.startswith("digit-") or int(count) != 5:
            raise SystemExit(f"the student answered {said!r}")
        print(f"the student answers {label} to a picture of a 3")


if __name__ == "__main__":
    main()
