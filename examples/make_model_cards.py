"""Puts the cards of trained students into `model_cards/`: record, card and pictures, without the weights.

    python -m examples.make_model_cards students/finetuned students/distilled students/small
    python -m examples.make_model_cards          # only writes the cards anew, from the records that are there

The students are those of the three examples; their commands stand at the head of each example. Below each card stands
what `studies/` found of its job.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from studies.cards import CARDS, write_cards

RECORD = "transfer.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", nargs="*", type=Path, help="folders that the examples wrote")
    parser.add_argument("--cards", type=Path, default=CARDS, help="where the cards go")
    given = parser.parse_args()
    for student in given.students:
        target = given.cards / student.name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        shutil.copy(student / RECORD, target / RECORD)
        for picture in student.rglob("*.png"):
            place = target / picture.relative_to(student)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, place)
    for card in write_cards(given.cards):
        print(f"wrote {card}")


if __name__ == "__main__":
    main()
