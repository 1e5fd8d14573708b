"""What comes from outside, bent in every way at hand: how often does something slip in, or end in a traceback?

    python -m benchmarks.attacks [--tries 100] [--only config recipe]

prints a table: attack, tries, how many were refused in one line or taken as harmless, and how many got through. All of
it is made here, by a seed: files of the wrong form, names that lead elsewhere, settings and metadata of every kind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

TEXT = 'x\n\n# Heading\n<b>html</b> [a](https://evil.example) ![b](https://evil.example/b.png) | ``` \u202e \ud800 "'
NAMES = [
    "weights.bin",
    "model.pt",
    "../model.safetensors",
    "/model.safetensors",
    "a/b.safetensors",
    "",
    ".",
    7,
    None,
    [],
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    7,
    10**9,
    10**30,
    1.5,
    float("nan"),
    "",
    TEXT,
    [],
    [TEXT],
    {},
    {"a": {"b": TEXT}},
]


def one_line(call: Callable[[], Any], *taken: type[Exception]) -> bool:
    """Whether a call ends well, or by an error of one line of the kinds that a user is told."""
    try:
        call()
    except (ValueError, *taken) as error:
        return "\n" not in str(error)
    except Exception as error:  # what a user would see as a traceback
        logging.getLogger(__name__).error("%s: %s", type(error).__name__, str(error)[:300])
        return False
    return True


class Folder:
    """A student's folder, made once and copied for each try."""

    def __init__(self, place: Path):
        from transformers import ViTConfig, ViTForImageClassification

        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        config = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=2)
        self.whole, self.place = place / "whole", place
        ViTForImageClassification(config).save_pretrained(self.whole)

    def copy(self) -> Path:
        """A new copy."""
        shutil.rmtree(self.place / "copy", ignore_errors=True)
        return Path(shutil.copytree(self.whole, self.place / "copy"))


def index(rng: random.Random, folder: Folder, number: int) -> bool:
    """A shard index that names something else than safetensors beside it: refused by every reader."""
    from hf_reprot.hub.contents import student_contents
    from hf_reprot.models.student import load_student
    from hf_reprot.models.teacher import Teacher

    copy = folder.copy()
    (copy / "model.safetensors").rename(copy / "piece.safetensors")
    places = {"a": NAMES[number % len(NAMES)], "b": "piece.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for read in (load_student, Teacher.load, student_contents):
        try:
            read(copy)
        except ValueError:
            continue
        return False
    return True


def header(rng: random.Random, folder: Folder, number: int) -> bool:
    """A safetensors file that is cut or has other bytes in its header: refused, or read as the library reads it."""
    from hf_reprot.utils.safetensors_only import check_file

    path = folder.copy() / "model.safetensors"
    content = bytearray(path.read_bytes())
    if number % 2:
        content = content[: rng.randrange(len(content))]
    else:
        end = 8 + int.from_bytes(content[:8], "little")
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(end)] = rng.randrange(256)
    path.write_bytes(content)
    try:
        shapes = check_file(path)
    except ValueError as error:
        return "\n" not in str(error)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return set(file.keys()) == set(shapes)
    except SafetensorError:
        return True  # a second look refuses it, before a tensor is made
    finally:
        path.unlink()


def config(rng: random.Random, folder: Folder, number: int) -> bool:
    """A config.json with another value for one of its settings: loads, or is refused in one line."""
    from hf_reprot.models.student import load_student

    copy = folder.copy()
    content = json.loads((copy / "config.json").read_text())
    content[rng.choice(sorted(content))] = rng.choice(VALUES)
    (copy / "config.json").write_text(json.dumps(content))
    return one_line(lambda: load_student(copy, rng.choice([None, ["a", "b"], ["a", "b", "c"]])))


def weights(rng: random.Random, folder: Folder, number: int) -> bool:
    """Weights without one, or with one of another shape or name: refused in one line; the head's may be new."""
    from safetensors.torch import load_file, save_file

    from hf_reprot.models.student import load_student

    copy = folder.copy()
    tensors = load_file(copy / "model.safetensors")
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    if number % 3:
        tensors[name if number % 3 == 1 else f"{name}x"] = tensor.flatten()[:1].clone()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    try:
        load_student(copy, ["a", "b"])
    except ValueError as error:
        return "\n" not in str(error)
    return name.startswith("classifier")


def metadata(rng: random.Random, folder: Folder, number: int) -> bool:
    """Other values in the facts of a run: written, read again, and nothing of them acts on the card."""
    from hf_reprot.hub.card import rebuild_card
    from hf_reprot.hub.facts import DataFacts, ModelFacts, Start
    from hf_reprot.hub.licenses import License
    from hf_reprot.hub.record import Evaluation, RunRecord

    licence = License.of(*(rng.choice([*VALUES, "other", "mit"]) for _ in range(3)))
    facts = [DataFacts("data", 3, license=licence), ModelFacts("a", "b", "torch", 1, license=licence), Start()]
    for some in facts:
        for field in rng.sample(fields(some), 2):
            if field.name != "license":
                setattr(some, field.name, rng.choice(VALUES))
    record = RunRecord("name", facts[1], facts[2], train_data=facts[0], evaluations=[Evaluation(facts[0], {"a": 0.5})])
    for name in ("name", "task", "input", "hardware", "tags", "language", "versions", "seeds", "seconds"):
        if rng.random() < 0.3:
            setattr(record, name, rng.choice(VALUES))
    place = folder.place / "card"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    record.save(place)
    text = rebuild_card(place).read_text(encoding="utf-8")
    body = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text.split("---\n", 2)[2], flags=re.DOTALL))
    return "<b>" not in re.sub(r"\\.", "", body) and not re.search(r"\]\(https://evil|\n# Heading", body)


def recipe(rng: random.Random, folder: Folder, number: int) -> bool:
    """A recipe with lines, values and bytes of any kind: read, or refused in one line."""
    from hf_reprot.commands.train import Recipe, parse_recipe
    from hf_reprot.config import OTTransferConfig

    names = [field.name for cls in (Recipe, OTTransferConfig) for field in fields(cls)]
    values = [
        ".inf",
        ".nan",
        "-1",
        "1e400",
        "yes",
        "[]",
        "{}",
        "{a: [b]}",
        "'x'",
        "2024-99-99",
        "!!binary x",
        "&a b",
        "*a",
    ]
    lines = [f"{rng.choice(names)}: {rng.choice(values)}" for _ in range(rng.randint(1, 4))]
    content = "\n".join(
        ["student: resnet10t", "dataset: digits", f"output_dir: {folder.place / 'out'}", *lines]
    ).encode()
    if number % 4 == 0:
        content = bytearray(content)
        content[rng.randrange(len(content))] = rng.randrange(256)
    path = folder.place / "run.yaml"
    path.write_bytes(content)
    return one_line(lambda: parse_recipe([], path), ValueError, TypeError, OSError)


ATTACKS = {call.__name__: call for call in (index, header, config, weights, metadata, recipe)}


def run(names: list[str], tries: int, seed: int = 0) -> dict[str, tuple[int, list[int]]]:
    """Tries, and the numbers of those that got through, by attack."""
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as place:
            folder, lost = Folder(Path(place)), []
            for number in range(tries):
                with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
                    held = ATTACKS[name](random.Random(f"{seed} {name} {number}"), folder, number)
                lost += [] if held else [number]
        found[name] = (tries, lost)
    return found


def table(found: dict[str, tuple[int, list[int]]]) -> str:
    """A Markdown table."""
    rows = ["| attack | tries | held | got through |", "|---|---:|---:|---:|"]
    for name, (tries, lost) in found.items():
        what = " ".join((ATTACKS[name].__doc__ or "").split()).rstrip(".")
        rows.append(f"| {what} | {tries} | {tries - len(lost)} | {len(lost)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(ATTACKS), default=list(ATTACKS))
    chosen = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("hf_reprot").setLevel(logging.ERROR)
    found = run(chosen.only, chosen.tries)
    print(table(found))
    for name, (_, lost) in found.items():
        if lost:
            print(f"{name}: tries {lost[:20]} got through")


if __name__ == "__main__":
    main()
