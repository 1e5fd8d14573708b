"""Data that draw random numbers when they are read, made to draw the same ones in a resumed run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, TensorDataset

from .dataset_columns import is_transformed
from .hub_datasets import Dataset

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def seeded(*what: Any) -> Iterator[None]:
    """Inside, torch (on the CPU), numpy and random draw what follows from `what` alone; then go on where they were."""
    told = " ".join(map(str, what))
    number = int.from_bytes(hashlib.blake2b(told.encode(), digest_size=4).digest(), "big")
    generator = torch.default_generator  # torch.manual_seed would seed the accelerators, too
    states = generator.get_state(), np.random.get_state(), random.getstate()
    generator.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    try:
        yield
    finally:
        generator.set_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


def seed_of_data(args: Any) -> int:
    """What a run's samples and augmentations are drawn with: `data_seed`, or else `seed`, as in `Trainer`."""
    return args.seed if args.data_seed is None else args.data_seed


class ReadingSeeds:
    """What rows and batches draw from: the run's seed, the epoch, and which rows they are.

    A `Trainer` fetches a batch before it trains on the one before: what a data set or a collator draws from the global
    generators is not where a checkpoint left it, and a resumed run would see other rows.

    Args:
        seed: The run's seed, until `set_epoch` gives another.
    """

    def __init__(self, seed: int = 0):
        # shared memory: workers that outlive an epoch see the next one's number
        self._state = torch.tensor([seed, 0], dtype=torch.int64).share_memory_()
        self.rows: str | None = None  # those that this process read last

    def rows_of(self, dataset: Any, collator: Any) -> Any:
        """The data set, its draws seeded where it may draw, or where the collator has to know which rows it gets."""
        known = hasattr(collator, "set_epoch")
        return SeededRows(dataset, self) if may_draw(dataset) or (not known and is_map_style(dataset)) else dataset

    def collator_of(self, collator: Callable) -> Callable:
        """The collator, its draws seeded unless it sees to that itself."""
        return collator if hasattr(collator, "set_epoch") else SeededCollator(collator, self)

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Of the rows that are read from now on."""
        self._state[0], self._state[1] = seed, epoch

    @contextlib.contextmanager
    def drawing(self, *what: Any) -> Iterator[None]:
        """Inside, torch (on the CPU), numpy and random draw what follows from seed, epoch and `what`; then go on."""
        with seeded(*self._state.tolist(), *what):
            yield


class SeededRows:
    """A map-style data set whose rows draw random numbers that follow from seed, epoch and index alone.

    Rows that the data set hands out many at a time (`__getitems__`) follow from all their indices. Whatever else is
    asked of it, the data set itself answers.

    Args:
        dataset: The data set.
        seeds: Of the run.
    """

    def __init__(self, dataset: Any, seeds: ReadingSeeds):
        self.dataset, self.seeds = dataset, seeds

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        self.seeds.rows = str(index)
        with self.seeds.drawing(index):
            return self.dataset[index]

    @property
    def __getitems__(self) -> Callable[[Sequence[int]], Sequence[Any]]:
        """Only where the data set has it: a loader asks."""
        if callable(getattr(self.dataset, "__getitems__", None)):
            return self._read_many
        raise AttributeError("__getitems__")

    def _read_many(self, indices: Sequence[int]) -> Sequence[Any]:
        self.seeds.rows = str(list(indices))
        with self.seeds.drawing(list(indices)):
            return self.dataset.__getitems__(indices)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


class SeededCollator:
    """A collator whose random numbers follow from seed, epoch and the rows of the batch.

    Args:
        collator: What makes a batch of rows.
        seeds: Those of the rows' `SeededRows`.
    """

    def __init__(self, collator: Callable, seeds: ReadingSeeds):
        self.collator, self.seeds = collator, seeds

    def __call__(self, rows: Sequence[Any]) -> Any:
        if self.seeds.rows is None:
            return self.collator(rows)
        with self.seeds.drawing("batch", self.seeds.rows):
            return self.collator(rows)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "collator" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.collator, name)


def may_draw(dataset: Any) -> bool:
    """Whether a map-style data set may draw random numbers when a row is read: nothing says that it does not."""
    if not is_map_style(dataset):
        return False
    if isinstance(dataset, Dataset):
        return is_transformed(dataset)
    return type(dataset) not in (TensorDataset, list, tuple)


def is_map_style(dataset: Any) -> bool:
    """Whether rows have numbers, by which a sampler asks for them."""
    numbered = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    return numbered and not isinstance(dataset, IterableDataset)


def unseeded(dataset: Any) -> Any:
    """The data set that was put inside of `SeededRows`, if it was."""
    return dataset.dataset if isinstance(dataset, SeededRows) else dataset


def warn_of_streams(dataset: Any, saves: bool) -> None:
    """Says that a streamed data set's random numbers are not resumed."""
    if saves and dataset is not None and not hasattr(dataset, "__len__"):
        logger.warning(
            "The training data are streamed: a resumed run reads on at the same row, but what the data draw at random "
            "while they are read (shuffling apart) is not what an uninterrupted run would have drawn."
        )
