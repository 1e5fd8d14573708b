"""What a study says of the recipe that a card's student was made by, below the card."""

from __future__ import annotations

from pathlib import Path

from hf_reprot.hub import rebuild_card

from .bench import results_folder
from .grid import Results
from .plan import read
from .report import short_table

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
# Folder in `model_cards/`, and the study of the same job.
STUDY_OF = {"finetuned": "finetune", "distilled": "distil", "small": "small"}
_HEAD = """
## The same recipe beside other methods

Not this student: networks, images and tries that are the same for every method, {seeds} seeds, each method's weight
chosen on validation images. All tables: [docs/study.md](../../docs/study.md).

"""


def write_cards(folder: Path = CARDS) -> list[Path]:
    """Writes the cards anew from their records, each with what its study found."""
    cards = [rebuild_card(record.parent) for record in sorted(folder.glob("*/transfer.json"))]
    for card in cards:
        with card.open("a", encoding="utf-8") as text:
            text.write(beside(card.parent.name))
    return cards


def beside(name: str) -> str:
    """The section for a card of this name; empty where its job has no study, or none that is finished."""
    if name not in STUDY_OF:
        return ""
    study = read(Path(__file__).with_name(f"{STUDY_OF[name]}.yaml"))
    results = Results(results_folder() / f"{study.name}.jsonl")
    found = short_table(study, results)
    return _HEAD.format(seeds=study.seeds) + found + "\n" if found else ""
