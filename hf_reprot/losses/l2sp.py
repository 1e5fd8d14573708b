"""L2-SP: decay toward the pretrained weights (Li, Grandvalet, Davoine, 2018, hf.co/papers/1802.01483)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .common import LossOutput


class L2SP(nn.Module):
    """Pulls the student's weights back to the point that fine-tuning started from.

    loss = sum over trainable parameters w of ||w - w0||^2

    w0 is copied when the loss is built, so build it on the model as it came from the Hub, before a checkpoint is
    loaded. w0 is kept out of every state dict.

    Args:
        model: The student as it starts.
        exclude: Names of modules or parameters that have no meaningful start, such as a new head: a parameter is left
            out when its name equals one of these or lies under it.

    Inputs: none; the loss reads the model it was built with.

    Requirements: the student starts from pretrained weights. Parameters must be whole (not sharded).

    Relations: anchors weights, where `RepresentationTransport` anchors what neurons compute: L2-SP forbids a
    permutation of neurons, transport does not see it.

    Example:
        >>> from torch import nn
        >>> from hf_reprot.losses import L2SP
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        >>> anchor = L2SP(model, exclude=["1"])  # "1" is the new head
        >>> anchor().loss.item()
        0.0

    References: Li, Grandvalet, Davoine: "Explicit Inductive Bias for Transfer Learning with Convolutional Networks",
    ICML 2018 (equation 3 without the factor 1/2; the decay of the new head is left to the optimiser).
    """

    citation = """@inproceedings{li2018explicit,
  title={Explicit Inductive Bias for Transfer Learning with Convolutional Networks},
  author={Li, Xuhong and Grandvalet, Yves and Davoine, Franck},
  booktitle={ICML},
  year={2018}
}"""

    def __init__(self, model: nn.Module, exclude: Iterable[str] = ()):
        super().__init__()
        exclude = tuple(exclude)
        known = dict(model.named_modules()).keys() | dict(model.named_parameters()).keys()
        unknown = [name for name in exclude if name not in known]
        if unknown:
            raise ValueError(f"exclude names {unknown}, which the model does not have")

        def excluded(name: str) -> bool:
            return any(name == skip or name.startswith(skip + ".") for skip in exclude)

        anchored = {name: p for name, p in model.named_parameters() if p.requires_grad and not excluded(name)}
        if not anchored:
            raise ValueError("L2-SP has no parameter to anchor: all of them are frozen or excluded")
        # Tuples, not modules or buffers: neither the student nor w0 may enter a state dict through this loss.
        self._names = tuple(anchored)
        self._parameters_of_student = tuple(anchored.values())
        self._start = tuple(p.detach().clone() for p in anchored.values())

    def forward(self) -> LossOutput:
        if self._start[0].device != self._parameters_of_student[0].device:
            self._start = tuple(w0.to(w.device) for w, w0 in zip(self._parameters_of_student, self._start, strict=True))
        moved = [
            w.to(torch.promote_types(w.dtype, torch.float32)) - w0
            for w, w0 in zip(self._parameters_of_student, self._start, strict=True)
        ]
        total = torch.stack([difference.square().sum() for difference in moved]).sum()
        return LossOutput(total, logs={"l2sp_distance": total.detach().sqrt()})

    def fingerprint(self) -> Tensor:
        """A few numbers (3,) that tell one w0 from another: count, sum and sum of squares in float64, on the CPU."""
        flat = [w0.detach().to("cpu", torch.float64) for w0 in self._start]
        return torch.stack([
            torch.tensor(float(sum(w0.numel() for w0 in flat)), dtype=torch.float64),
            sum((w0.sum() for w0 in flat), torch.zeros((), dtype=torch.float64)),
            sum((w0.square().sum() for w0 in flat), torch.zeros((), dtype=torch.float64)),
        ])  # fmt: skip

    def extra_repr(self) -> str:
        return f"parameters={len(self._names)}, weights={sum(w.numel() for w in self._start)}"
