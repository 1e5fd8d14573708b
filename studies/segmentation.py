"""A small segmentation network, scenes with masks, and the score: what `studies.distil_dense` trains and measures."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset
from torchvision.transforms.functional import pil_to_tensor

from hf_reprot.features.tables import evaluating
from hf_reprot.features.taps import Taps


class Segmenter(nn.Module):
    """Four steps down; `neck`, 64 neurons at an eighth of the size, which are what is taught; one step up; the logits.

    Args:
        seed: Of its weights.
    """

    main_input_name = "pixel_values"

    def __init__(self, seed: int):
        super().__init__()
        torch.manual_seed(seed)
        self.down = nn.ModuleList(_block(a, b, 2) for a, b in itertools.pairwise([3, 16, 32, 64, 64]))
        self.neck, self.fine, self.head = _block(128, 64), _block(96, 32), nn.Conv2d(32, 2, 1)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        maps = [pixel_values]
        for step in self.down:
            maps.append(step(maps[-1]))
        x = self.neck(torch.cat([F.interpolate(maps[4], scale_factor=2.0), maps[3]], 1))
        x = self.fine(torch.cat([F.interpolate(x, scale_factor=2.0), maps[2]], 1))
        logits = F.interpolate(self.head(x), pixel_values.shape[-2:], mode="bilinear")
        return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})


class Scenes(Dataset):
    """Images and masks at half their size, and the row at which a remembered teacher has each.

    Args:
        split: Rows with "image" and "mask", all of one size.

    Attributes:
        large: (n, 3, 2h, 2w) in [-1, 1]: what the teacher sees.
        images: (n, 3, h, w).
        masks: (n, h, w) 0 or 1.
    """

    def __init__(self, split):
        self.large = torch.stack([pil_to_tensor(image) for image in split["image"]]).float() / 127.5 - 1
        self.images = F.avg_pool2d(self.large, 2)
        self.masks = torch.stack([pil_to_tensor(mask)[0, ::2, ::2] for mask in split["mask"]]).gt(127).long()

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"pixel_values": self.images[i], "labels": self.masks[i], "teacher_index": torch.tensor(i)}


@torch.no_grad()
def mean_iou(student: nn.Module, scenes: Scenes) -> float:
    """Mean IoU of the student's own head over background and thing."""
    with evaluating(student):
        found = torch.cat([student(x)["logits"].argmax(1) for x in scenes.images.split(50)])
    return mean_of_shares(found, scenes.masks)


def linear_head_iou(model: nn.Module, layer: str, few: Subset, parts: Mapping[str, Scenes]) -> dict[str, float]:
    """Mean IoU of a logistic regression on the neurons at each position, learned from a few masks.

    A position counts as the thing's where more than half of its pixels are; its answer is drawn over its pixels.
    """
    scenes, rows = few.dataset, list(few.indices)
    maps = neurons_at_positions(model, layer, scenes.images[rows])
    cells = F.adaptive_avg_pool2d(scenes.masks[rows][:, None].float(), maps.shape[1:3]) > 0.5
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    head.fit(maps.flatten(0, 2).numpy(), cells.flatten().numpy())
    found = {}
    for name, part in parts.items():
        maps = neurons_at_positions(model, layer, part.images)
        answers = torch.from_numpy(head.predict(maps.flatten(0, 2).numpy())).view(maps.shape[:3])
        found[name] = mean_of_shares(F.interpolate(answers[:, None].float(), part.masks.shape[-2:])[:, 0], part.masks)
    return found


@torch.no_grad()
def neurons_at_positions(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """(images, height, width, neurons) of a convolutional layer."""
    taps, maps = Taps(model, [layer]), []
    with evaluating(model):
        for x in images.split(50):
            with taps.recording():
                model(x)
            maps.append(taps.take()[layer].tensor.permute(0, 2, 3, 1))
    taps.close()
    return torch.cat(maps)


def mean_of_shares(found: Tensor, masks: Tensor) -> float:
    """Intersection / union of background and of thing, counted over all pixels; the mean of the two."""
    shares = [((found == c) & (masks == c)).sum() / ((found == c) | (masks == c)).sum() for c in (0, 1)]
    return (sum(shares) / 2).item()


def _block(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
