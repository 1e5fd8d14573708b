"""The hooks of an objective for the time of a training run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import nn

from ..features.compiled import is_compiled, own_hooks
from .objective import TransferObjective


class TrainingSession:
    """Registers the hooks when a run begins and removes them when it ends: the student is then a model like any other.

    Args:
        objective: Gives the objective as it is now: it may be built anew.
    """

    def __init__(self, objective: Callable[[], TransferObjective]):
        self._objective = objective
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Training takes place inside."""
        self._objective().register()
        with contextlib.ExitStack() as self._stack:
            self._stack.callback(lambda: self._objective().close())
            yield

    def begin_compiling(self, models: Iterable[nn.Module], accelerator: Accelerator) -> None:
        """Before the student's first pass: lets compiled code see the hooks, until the session is over.

        Args:
            models: The student and the teachers.
            accelerator: It may have been told to compile.
        """
        plugin = getattr(accelerator.state, "dynamo_plugin", None)  # also of ACCELERATE_DYNAMO_BACKEND
        launched = plugin is not None and plugin.backend != DynamoBackend.NO
        self._stack.enter_context(own_hooks(launched or any(map(is_compiled, models))))
