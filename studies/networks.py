"""Small networks that a study can train by the hundred on two cores, and ways for a student to start."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution with stride 2, batch norm and ReLU; the mean over positions; a linear head.

    Args:
        widths: Channels of each block: the neurons of its layer.
        classes: Outputs.
        channels: Of the images.
    """

    main_input_name = "pixel_values"

    def __init__(self, widths: Sequence[int], classes: int, channels: int):
        super().__init__()
        self.widths = tuple(widths)
        blocks = []
        for before, after in zip((channels, *widths), widths, strict=False):
            convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
            blocks.append(nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU()))
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = pixel_values
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.flat(self.pool(x)))
        loss = {} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels)}
        return loss | {"logits": logits}


class Remembered(nn.Module):
    """A teacher whose outputs for every view were computed once: takes `teacher_index`, gives their rows.

    Its layers are "features", pooled, and "maps", with positions.

    Args:
        maps: (views, neurons, height, width), or (views, neurons) where no method looks at positions.
        logits: (views, classes).
        title: Of the teacher whose outputs they are.
    """

    def __init__(self, maps: Tensor, logits: Tensor, title: str = ""):
        super().__init__()
        self.title = title
        self.register_buffer("table", maps)
        self.register_buffer("logits", logits)
        self.maps, self.features = nn.Identity(), nn.Identity()

    def rolled(self) -> Remembered:
        """The same outputs, each view with those of another one, in an order drawn once."""
        order = torch.randperm(len(self.table), generator=torch.Generator().manual_seed(0))
        return Remembered(self.table[order], self.logits[order], f"{self.title}, rolled")

    def forward(self, index: Tensor) -> Tensor:
        if index.is_floating_point():  # the dummy images, on which a trainer looks at widths
            index = torch.arange(len(index)) % len(self.table)
        maps = self.maps(self.table[index])
        self.features(maps.mean((-2, -1)) if maps.ndim == 4 else maps)
        return self.logits[index]


def build(name: str, classes: int, channels: int, size: int, seed: int) -> nn.Module:
    """A new network: "conv-16-32-64" (widths), or "vit-48-2" (width, depth; 16 patches).

    Raises:
        ValueError: another name.
    """
    torch.manual_seed(seed)
    kind, *numbers = name.split("-")
    if kind == "conv" and numbers:
        return ConvNet([int(n) for n in numbers], classes, channels)
    if kind == "vit" and len(numbers) == 2:
        width, depth = (int(n) for n in numbers)
        return ViTForImageClassification(
            ViTConfig(
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=4,
                intermediate_size=2 * width,
                image_size=size,
                patch_size=size // 4,
                num_channels=channels,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                num_labels=classes,
            )
        )
    raise ValueError(f"no network {name!r}: give conv-WIDTH-WIDTH-... or vit-WIDTH-DEPTH")


def last_layer(model: nn.Module) -> str:
    """The representation before the head, pooled, as a layer pair names it."""
    if isinstance(model, Remembered):
        return "features"
    return "head:input" if isinstance(model, ConvNet) else "last"


@torch.no_grad()
def kept_neurons(teacher: ConvNet, widths: Sequence[int], seed: int) -> ConvNet:
    """A copy of some of a teacher's neurons, in a random order: the same widths give a permuted copy.

    Args:
        teacher: Where the neurons come from.
        widths: How many of each block are kept.
        seed: Which, and in what order.
    """
    generator = torch.Generator().manual_seed(seed)
    student = ConvNet(widths, teacher.head.out_features, teacher.blocks[0][0].in_channels)
    before = torch.arange(teacher.blocks[0][0].in_channels)
    for ours, theirs, width in zip(student.blocks, teacher.blocks, widths, strict=True):
        kept = torch.randperm(theirs[0].out_channels, generator=generator)[:width]
        ours[0].weight.copy_(theirs[0].weight[kept][:, before])
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(ours[1], name).copy_(getattr(theirs[1], name)[kept])
        before = kept
    student.head.reset_parameters()
    return student
