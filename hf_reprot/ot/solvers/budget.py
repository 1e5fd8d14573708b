"""How many sweeps to launch, known from earlier calls instead of asked from the device."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

import torch
from torch import Tensor

_KEPT = 256  # shapes remembered
_LAG = 2  # calls back that an answer is read from: its copy has arrived long since


class SweepBudget:
    """Remembers, for each kind of call, how many sweeps its pairs needed.

    Args:
        first: Sweeps that are allowed for at least.
    """

    def __init__(self, first: int):
        self.first = first
        self._known: OrderedDict[Hashable, _History] = OrderedDict()

    def plan(self, key: Hashable, chunk: int, most: int) -> Work:
        """The work of one call: `key` tells calls apart that need different numbers of sweeps."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            # A graph makes the same sweeps at every replay, and nothing may be read on the way.
            known = self._known.get(key)
            return Work(None, min(most, known.sweeps if known is not None else most))
        history = self._known.setdefault(key, _History(self.first))
        self._known.move_to_end(key)
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return Work(history, history.read(chunk, most))


class Work:
    """One call's number of sweeps. `may_ask` is True where the device is asked, since nothing is known yet."""

    def __init__(self, history: _History | None, sweeps: int | None):
        self._history = history
        self.sweeps = sweeps
        self.may_ask = sweeps is None

    def enough(self, made: int, done: Tensor) -> bool:
        """Whether to stop after `made` sweeps."""
        return bool(done.all()) if self.sweeps is None else made >= self.sweeps

    def learn(self, iterations: Tensor, done: Tensor) -> None:
        """Keeps what this call needed, for later ones; a copy that nobody waits for."""
        if self._history is not None:
            self._history.answers.append(_Answer(torch.stack([iterations.max(), done.all().to(iterations.dtype)])))


class _History:
    def __init__(self, first: int):
        self.sweeps = first
        self.answers: deque[_Answer] = deque(maxlen=_LAG + 1)

    def read(self, chunk: int, most: int) -> int | None:
        if not self.answers:
            return None
        if len(self.answers) > _LAG or len(self.answers) == 1:
            needed, all_done = self.answers[0].value()
            # A margin above what was needed; more, and growing, where it was not enough. It shrinks slowly.
            wanted = needed + needed // 4 + chunk if all_done else 2 * needed
            self.sweeps = max(wanted, self.sweeps - chunk)
        return min(self.sweeps, most)


class _Answer:
    """Two numbers on their way from the device."""

    def __init__(self, numbers: Tensor):
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def value(self) -> tuple[int, bool]:
        if self._event is not None:
            self._event.synchronize()
        needed, all_done = self._numbers.tolist()
        return needed, bool(all_done)
