"""Replayed features against forgetting: a head goes on learning old classes while new images come in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import TrainerCallback

from ...features.architecture import head_paths
from ...features.paths import resolve_path, unwrap
from ...features.tables import evaluating
from ...losses.distillation import LogitDistillation
from .transport import LatentTransport

_PRIME = 1_000_003  # keeps the noise of neighbouring seeds apart


class FeatureReplayCallback(TrainerCallback):
    """Adds the gradient of a head's loss on replayed features to every step, in any `transformers.Trainer`.

        step's loss = the Trainer's loss + weight * mean CE(head(x), y),   (x, y) drawn from `latent`

    The gradient is put into `.grad` before a step's first backward pass, which adds to it. So it is clipped together
    with the Trainer's, counted once however many micro-batches are accumulated, and scaled as the loss is in float16.
    Every process draws the same features (the noise follows from `seed` and the step, also after a resume), so that
    averaging over processes changes nothing. The device is never asked. It teaches the head alone: where the layers
    before it move, old features no longer are what they produce.

    Args:
        latent: A fitted `LatentTransport` of what goes into the head, or another source of features with its `sample`,
            `to`, `width` and `labels`.
        head: Path of the module that takes features and gives logits; "auto" finds the classifier of a timm or
            transformers model.
        weight: Of the replayed loss.
        batch_size: Features per step.
        teacher: A head (kept frozen, in eval mode) whose logits on the replayed features are the targets, in place of
            the labels: needs none, and carries what the old head knew of every class.
        temperature: Of the distillation from `teacher`.
        seed: Of the noise.

    Attributes:
        last_loss: () Replayed loss of the last step, unweighted; logged as `replay_loss`.

    Raises:
        TypeError: `latent` is no source of features.
        ValueError: a setting out of range; labels are needed and `latent` has none. When training begins: no head is
            found, features do not fit it, it has fewer logits than labels, nothing of it is trained, or its parameters
            are sharded (FSDP, DeepSpeed).

    Example:
        >>> import torch
        >>> from hf_reprot.experimental.latent import LatentTransport
        >>> from hf_reprot.experimental.latent.replay import FeatureReplayCallback
        >>> latent = LatentTransport(dimension=2, steps=5).fit(torch.randn(40, 8), torch.arange(40) % 2)
        >>> replay = FeatureReplayCallback(latent, weight=1.0, batch_size=16)  # Trainer(..., callbacks=[replay])

    References: replay of stored features: van de Ven et al., "Brain-inspired replay for continual learning with
    artificial neural networks", Nature Communications 2020, and the works it cites.
    """

    def __init__(
        self,
        latent: LatentTransport,
        head: str = "auto",
        *,
        weight: float = 1.0,
        batch_size: int = 64,
        teacher: nn.Module | None = None,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        if not callable(getattr(latent, "sample", None)):
            raise TypeError(f"latent must be a fitted LatentTransport, got {type(latent).__name__}")
        if not (0 < weight < math.inf):
            raise ValueError(f"weight must be a finite number above 0, got {weight}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        if teacher is None and latent.labels is None:
            raise ValueError(
                "latent was fitted without labels, so that a replayed feature has no class: fit(features, labels), or "
                "give teacher=, a head whose logits are the targets"
            )
        self.latent, self.head, self.weight, self.batch_size, self.seed = latent, head, weight, batch_size, seed
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.distillation = LogitDistillation(temperature) if teacher is not None else None
        self.last_loss: Tensor | None = None
        self._head: nn.Module = nn.Identity()  # until training begins
        self._generator = torch.Generator()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finds the head, brings the features to its device, and checks that they fit."""
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ValueError("feature replay needs the head's whole gradient: use it without DeepSpeed and FSDP")
        model = unwrap(kwargs["model"])
        path = self._path(model)
        self._head = model.get_submodule(path)
        parameters = self._parameters()
        if not parameters:
            raise ValueError(f"head {path!r}: nothing of it is trained, so that there is nothing to replay for")
        if any(isinstance(parameter, DTensor) for parameter in parameters):
            raise ValueError(f"head {path!r} is sharded: feature replay needs its whole gradient")
        self.latent.to(parameters[0].device)
        self._generator = torch.Generator(parameters[0].device)
        if self.teacher is not None:
            self.teacher.to(parameters[0].device)
        self._check(path)

    def on_step_begin(self, args, state, control, *, optimizer: Any = None, **kwargs: Any) -> None:
        """Before the first micro-batch: what is put into `.grad` here is part of the step's gradient."""
        self._generator.manual_seed(self.seed * _PRIME + state.global_step)
        parameters = self._parameters()
        with torch.enable_grad():
            loss = self._loss()
            self.last_loss = loss.detach()
            scaler = getattr(optimizer, "scaler", None)
            scaled = self.weight * loss
            scaled = scaler.scale(scaled) if scaler is not None else scaled
            # Not `backward`: that would tell DDP that these parameters are done.
            gradients = torch.autograd.grad(scaled, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def on_log(self, args, state, control, *, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """The replayed loss stands beside the Trainer's."""
        if self.last_loss is None or not logs or "loss" not in logs:
            return
        logs["replay_loss"] = self.last_loss.item()
        if state.log_history:
            state.log_history[-1]["replay_loss"] = logs["replay_loss"]

    def _loss(self) -> Tensor:
        drawn = self.latent.sample(self.batch_size, generator=self._generator)
        features = drawn[0] if isinstance(drawn, tuple) else drawn
        logits = _logits(self._head, features)
        if self.teacher is None or self.distillation is None:
            return F.cross_entropy(logits, drawn[1])
        with torch.no_grad():
            targets = _logits(self.teacher, features)
        return self.distillation(logits, targets).loss

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._head.parameters() if parameter.requires_grad]

    def _path(self, model: nn.Module) -> str:
        if self.head != "auto":
            return resolve_path(model, self.head)
        found = head_paths(model)
        if len(found) == 1:
            return found[0]
        what = f"several modules stand before the logits ({', '.join(found)})" if found else "no classifier was found"
        children = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"head='auto': {what} in {type(model).__name__}. Give the path of the module that takes features and gives "
            f"logits; the model has {children}"
        )

    @torch.no_grad()
    def _check(self, path: str) -> None:
        probe = torch.zeros(2, self.latent.width, device=self._generator.device)
        outputs = {}
        heads = {f"head {path!r}": self._head} | ({"teacher": self.teacher} if self.teacher is not None else {})
        for name, head in heads.items():
            try:
                with evaluating(head):
                    outputs[name] = _logits(head, probe)
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(f"{name} does not take features of width {self.latent.width}: {reason}") from error
            if outputs[name].ndim != 2:
                raise ValueError(f"{name} gives {tuple(outputs[name].shape)} for 2 features, not (2, classes)")
        widths = {logits.shape[1] for logits in outputs.values()}
        if len(widths) > 1:
            raise ValueError(f"head {path!r} and teacher give different numbers of logits: {sorted(widths)}")
        labels = self.latent.labels or []
        if self.teacher is None and not 0 <= min(labels) <= max(labels) < min(widths):
            raise ValueError(
                f"head {path!r} has {min(widths)} logits, but latent was fitted with labels {labels[0]} to {labels[-1]}"
            )


def _logits(head: nn.Module, features: Tensor) -> Tensor:
    """In the head's own precision; its logits in float32."""
    kind = next((p.dtype for p in head.parameters() if p.is_floating_point()), features.dtype)
    return head(features.to(kind)).float()
