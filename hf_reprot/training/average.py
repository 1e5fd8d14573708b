"""`ema_decay`: an exponential moving average of the student's weights, evaluated and saved in their place."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

logger = logging.getLogger(__name__)

_PREFIX = "ema."
_COUNT, _TRAINED, _AVERAGE = f"{_PREFIX}updates", f"{_PREFIX}trained.", f"{_PREFIX}average."


class _Weights(nn.Module):
    """What of a student changes in training: in a module of its own, since hooks and wrappers are not to be copied."""

    def __init__(self, student: nn.Module, whole: bool = False):
        super().__init__()
        trained = {n: p for n, p in student.named_parameters() if p.requires_grad}
        moving = {n: b for n, b in student.named_buffers() if b.is_floating_point()}
        self.names = [*trained, *moving]
        weights = [w.detach() for w in (*trained.values(), *moving.values())]
        if whole:  # a weight of 1 - d is lost in half precision
            weights = [w.to(torch.promote_types(w.dtype, torch.float32)) for w in weights]
        self.parts = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)


class StudentAverage:
    """The moving average of a student in training; without a decay, it does nothing.

    It is torch's `AveragedModel` with `get_ema_multi_avg_fn`: the weights after the first step, then after each step
    average <- d * average + (1 - d) * weights, in at least float32, for trained parameters and for buffers alike.

    What is saved while it is kept are the averaged weights; those that are trained on go into the transfer's state,
    so that a resumed run goes on from both.

    Args:
        decay: d; None: no average.
        student: Gives the student, unwrapped.
    """

    def __init__(self, decay: float | None, student: Callable[[], nn.Module]):
        self.decay, self._student = decay, student
        self._average: AveragedModel | None = None
        self._applied = self._restored = False

    def check(self, *, sharded: bool) -> None:
        """Refuses a student whose weights are spread over processes.

        Raises:
            ValueError: such a student.
        """
        if self.decay is not None and sharded:
            raise ValueError(
                "ema_decay keeps a copy of a whole student, and FSDP and DeepSpeed spread it over processes: set "
                "ema_decay=None, or train with DDP"
            )

    def start(self) -> None:
        """Before the first step: no average yet, unless the checkpoint brought one."""
        if not self._restored:
            self._average = self._new() if self.decay is not None else None
        self._restored = False

    def update(self) -> None:
        """After a step of the optimiser."""
        if self._average is not None:
            self._average.update_parameters(_Weights(self._student(), whole=True))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the student has the averaged weights, if there are any yet."""
        if self._average is None or not int(self._average.n_averaged) or self._applied:
            yield
            return
        kept = [weight.detach().clone() for weight in self._live().values()]
        self._applied = True
        try:
            self._put(self._parts())
            yield
        finally:
            self._put(kept)
            self._applied = False

    def settle(self) -> None:
        """When training is over: the student is the average from now on."""
        if self._average is not None and int(self._average.n_averaged):
            self._put(self._parts())
        self._average = None

    def forget(self) -> None:
        """The best checkpoint has been loaded, whose weights are an average already."""
        self._average = None

    # ---- checkpoints ----

    def state_dict(self) -> dict[str, Tensor]:
        """The average, and the weights that are trained on: a checkpoint's weights are the average."""
        if self._average is None:
            return {}
        parts = zip(self._live().items(), self._parts(), strict=True)
        state: dict[str, Tensor] = {_COUNT: self._average.n_averaged.clone()}
        for (name, weight), average in parts:
            state |= {_TRAINED + name: weight.detach().clone(), _AVERAGE + name: average.detach().clone()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `state_dict` gave: the student's weights, too.

        Raises:
            ValueError: the average of another student.
        """
        self._average = None
        if _COUNT not in state:
            if self.decay is not None:
                logger.warning("The checkpoint holds no average (ema_decay): one is begun with the next step")
            return
        live = self._live()
        saved = {n.removeprefix(_TRAINED): value for n, value in state.items() if n.startswith(_TRAINED)}
        if {n: w.shape for n, w in live.items()} != {n: w.shape for n, w in saved.items()}:
            raise ValueError(
                "the checkpoint holds the average (ema_decay) of other weights than those that are trained now: resume "
                "with the same student and the same frozen layers, or start anew"
            )
        for name, weight in live.items():
            weight.detach().copy_(saved[name])
        if self.decay is None:
            logger.warning("The run that wrote the checkpoint kept an average (ema_decay); this one goes on without")
            return
        self._average, self._restored = self._new(), True
        self._average.n_averaged.copy_(state[_COUNT])
        for name, average in zip(live, self._parts(), strict=True):
            average.detach().copy_(state[_AVERAGE + name])

    # ---- weights ----

    def _new(self) -> AveragedModel:
        weights = _Weights(self._student(), whole=True)
        return AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(float(self.decay or 0.0)))

    def _parts(self) -> list[Tensor]:
        """The averages, in the order of `_live`."""
        return list(self._average.module.parameters()) if self._average is not None else []

    def _live(self) -> dict[str, Tensor]:
        weights = _Weights(self._student())
        return dict(zip(weights.names, weights.parts, strict=True))

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for weight, value in zip(self._live().values(), values, strict=True):
            weight.detach().copy_(value)
