"""How much of a training step the transport term takes: cost, solution and gradient, beside the models.

    python -m benchmarks.training                                   # ViT-S to ResNet-18, on the CPU
    python -m benchmarks.training --teacher resnet50 --batch 64 256 --image 224 --device cuda

The step that it is compared with has the same forward pass of the teacher, the student's forward and backward pass, a
cross-entropy and an optimiser, and no transport. The transport's own time is taken from the recorded layers to their
gradients. Weights and images are random; every step has new images. The parts take turns; medians are reported, and the
range of the transport's share over the steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field, replace

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.pairs import match_pairs
from hf_reprot.features.taps import Taps
from hf_reprot.losses import LossOutput, RepresentationTransport

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CASES = {
    "last layer": {"layers": "last", "positions": "pooled"},
    "stages": {"layers": "stages", "positions": "pooled"},
    "last layer, every position": {"layers": "last", "positions": "all"},
    "stages, every position": {"layers": "stages", "positions": "all"},
}


@dataclass
class Parts:
    """Seconds of the parts of each step."""

    teacher: list[float] = field(default_factory=list)
    student: list[float] = field(default_factory=list)
    transport: list[float] = field(default_factory=list)
    sweeps: list[float] = field(default_factory=list)


class Step:
    """One training step of a student, with and without the transport of some layer pairs."""

    def __init__(self, options: argparse.Namespace, batch: int, layers: str, positions: str):
        torch.manual_seed(0)
        self.options, self.batch, self.positions = options, batch, positions
        self.teacher = timm_model(options.teacher, options.image).to(options.device).eval().requires_grad_(False)
        self.student = timm_model(options.student, options.image).to(options.device).train()
        if options.device == "cuda":
            self.teacher, self.student = (m.to(memory_format=torch.channels_last) for m in (self.teacher, self.student))
        self.pairs = match_pairs(layers, self.student, [self.teacher], positions)
        self.student_taps = Taps(self.student, sorted({pair.student for pair in self.pairs}))
        self.teacher_taps = Taps(self.teacher, sorted({pair.teacher for pair in self.pairs}))
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=1e-3, momentum=0.9)
        self.transport = RepresentationTransport(tolerance=options.tolerance)

    def run(self, parts: Parts) -> None:
        device = self.options.device
        images = torch.randn(self.batch, 3, self.options.image, self.options.image, device=device)
        labels = torch.randint(10, (self.batch,), device=device)
        with torch.autocast(device, torch.bfloat16, enabled=self.options.bfloat16):
            begin = self._now()
            with torch.no_grad(), self.teacher_taps.recording():
                self.teacher(images)
            taught = self._now()
            with self.student_taps.recording():
                loss = functional.cross_entropy(self.student(images), labels)
        theirs, ours = self.teacher_taps.take(), self.student_taps.take()
        before = self._now()
        outputs = self._transport(ours, theirs)
        after = self._now()
        loss.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()
        end = self._now()
        parts.teacher.append(taught - begin)
        parts.student.append(before - taught + end - after)
        parts.transport.append(after - before)
        parts.sweeps.append(max(float(output.logs["iterations"]) for output in outputs))

    def _transport(self, ours, theirs) -> list[LossOutput]:
        """The term of the loss and its gradient in the recorded layers, cut off from what is below them."""
        leaves = {name: ours[name].tensor.detach().requires_grad_() for name in {p.student for p in self.pairs}}
        cut = {name: replace(ours[name], tensor=leaf) for name, leaf in leaves.items()}
        outputs = self.transport.forward_pairs(self.neurons(cut, theirs))
        torch.autograd.grad(torch.stack([output.loss for output in outputs]).mean(), list(leaves.values()))
        return outputs

    def neurons(self, ours, theirs) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The recorded layers of each pair as tables with the same samples."""
        return [pair_neurons(ours[pair.student], theirs[pair.teacher], positions=self.positions) for pair in self.pairs]

    def _now(self) -> float:
        if self.options.device == "cuda":
            torch.cuda.synchronize()
        return CLOCKS[self.options.clock]()


def timm_model(name: str, image: int) -> torch.nn.Module:
    """A classifier of ten classes with random weights, for images of a size."""
    sized = {"img_size": image} if name.startswith(("vit", "deit", "swin", "test_vit")) else {}
    return timm.create_model(name, num_classes=10, **sized)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vit_small_patch16_224")
    parser.add_argument("--student", default="resnet18")
    parser.add_argument("--image", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=7, help="of a row, after one that is not counted")
    parser.add_argument(
        "--seconds", type=float, default=20, help="of a row's steps at most; one step is always counted"
    )
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--bfloat16", action="store_true", help="autocast of both models")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: seconds of computing, for a busy machine")
    options = parser.parse_args(arguments)
    if options.clock == "cpu":  # computing time adds up over threads
        torch.set_num_threads(1)
    table = Table(title=f"{options.teacher} to {options.student}, {options.image} px, {options.device}")
    for heading in (
        "transport",
        "batch",
        "pairs",
        "teacher ms",
        "student ms",
        "transport ms",
        "share",
        "range",
        "steps",
        "sweeps",
    ):
        table.add_column(heading, justify="left" if heading == "transport" else "right")
    for case in options.cases:
        for batch in options.batch:
            step, parts = Step(options, batch, **CASES[case]), Parts()
            step.run(Parts())  # what is slow only once
            begin = time.perf_counter()
            while len(parts.transport) < options.steps:
                step.run(parts)
                if time.perf_counter() - begin > options.seconds:
                    break
            shares = [x / (x + y + z) for x, y, z in zip(parts.transport, parts.teacher, parts.student, strict=True)]
            teacher, student, transport = map(statistics.median, (parts.teacher, parts.student, parts.transport))
            table.add_row(
                *(case, str(batch), str(len(step.pairs))),
                *(f"{1e3 * seconds:.1f}" for seconds in (teacher, student, transport)),
                f"{transport / (teacher + student + transport):.1%}",
                f"{min(shares):.1%} to {max(shares):.1%}",
                *(str(len(shares)), f"{statistics.median(parts.sweeps):.0f}"),
            )
    Console().print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.clock} time")
    Console().print(table)


if __name__ == "__main__":
    main()
