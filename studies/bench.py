"""One run of a study: a teacher, a student, a method, some labels, a seed; and the accuracy at its end."""

from __future__ import annotations

import copy
import functools
import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from examples.carriers.fetch import cache_folder
from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.features.activations import pair_neurons
from hf_reprot.features.pairs import resolve_layer
from hf_reprot.features.tables import evaluating
from hf_reprot.features.taps import Taps
from hf_reprot.utils.running import accuracy, quiet

from . import images as images_module
from . import networks
from .images import Images, Pixels, load, split_of
from .methods import METHODS, Method
from .networks import ConvNet, Remembered
from .plan import TUNING_SEED as _TUNING_SEED
from .plan import Setting, Study
from .pretrained import is_pretrained, lite, normalised, trunk

_TEACHER_SEED = 1000
_FIRST_TEACHER_SEED = 2000  # of several
_BATCH = 100


class Bench:
    """Holds what the runs of a study share: images, trained teachers, remembered features.

    Args:
        study: The study.
        live: Run every teacher in every step, also where its features could be remembered.

    Attributes:
        train_seconds: Of the last training, without loading and evaluation.
    """

    def __init__(self, study: Study, *, live: bool = False):
        self.study, self.live = study, live
        self.train_seconds = 0.0
        self._label_free: tuple[tuple | None, nn.Module | None] = (None, None)
        self._split = functools.lru_cache(maxsize=4)(lambda split: load(**study.images, split=split))
        self.remembered = functools.lru_cache(maxsize=8)(self._remembered)

    def images(self, seed: int) -> Images:
        """The images of one seed."""
        return self._split(split_of(self.study.images["name"], seed))

    def run(
        self, setting: Setting, method: str, weight: float | None, labels: int, seed: int, transport: float | None
    ) -> dict[str, Any]:
        """Trains one student.

        Args:
            setting, method, labels, seed: As in `Study`.
            weight: Of the method's own term.
            transport: Weight of transport, for a method that has it beside its own.

        Returns:
            test and validation accuracy after the last step, seconds of training and steps.
        """
        how, images = METHODS[method], self.images(seed)
        few = images.train.take(images.few(labels, seed), self.study.views)
        student = self._student(setting, images, seed)
        alone = not how.weight or how.weight[0] in ("learning_rate", "weight_decay", "l2sp_weight", "bss_weight")
        teacher = None if alone else self._teacher(setting, how, images, seed)
        settings = dict(how.settings) | ({how.weight[0]: weight} if how.weight else {})
        if transport is not None:
            settings["ot_weight"] = transport
        pairs = ["last"]
        if teacher is not None:
            layer = _maps_layer if how.maps or settings.get("ot_positions") == "all" else networks.last_layer
            pairs = [f"{layer(student)}={layer(teacher)}"]
            if how.blocks:
                pairs = [f"blocks.{i}=blocks.{i}" for i in range(len(student.blocks) - 1)] + pairs
        began = time.perf_counter()
        if how.label_free:
            key = (setting.name, method, weight, seed)
            if self._label_free[0] != key:  # the labels take no part: one student for all numbers of them
                pool = images.train.take(images.few(10_000, seed), self.study.views)
                self._train(student, teacher, pool, images, seed, settings | {"layer_pairs": pairs})
                self._label_free = key, student
            result = _probe(self._label_free[1], few, images)
        else:
            student = self._train(student, teacher, few, images, seed, settings | {"layer_pairs": pairs})
            result = {"test": _accuracy(student, images.test), "validation": _accuracy(student, images.validation)}
        if isinstance(teacher, Remembered) and teacher.title:
            result["teacher"] = teacher.title
        return result | {"seconds": round(time.perf_counter() - began, 2)}

    def _train(self, student, teacher, data: Pixels, images: Images, seed: int, settings: dict[str, Any]) -> nn.Module:
        study = self.study
        with tempfile.TemporaryDirectory() as folder, quiet():
            config = OTTransferConfig(
                output_dir=folder,
                seed=seed,
                **{
                    "max_steps": study.steps,
                    "per_device_train_batch_size": study.batch_size,
                    "learning_rate": study.learning_rate,
                    "lr_scheduler_type": "cosine",
                    "warmup_steps": 0.1,
                    "save_strategy": "no",
                    "logging_strategy": "no",
                    "report_to": "none",
                    "disable_tqdm": True,
                    "remove_unused_columns": False,
                    "dataloader_pin_memory": torch.cuda.is_available(),
                    **settings,
                },
            )
            trainer = OTTransferTrainer(
                model=student,
                teacher_model=teacher,
                args=config,
                train_dataset=data,
                processing_class=images.processor,
                compute_metrics=accuracy,
            )
            trainer.remove_callback(transformers.PrinterCallback)
            self.train_seconds = trainer.train().metrics["train_runtime"]
            trainer.transfer.close()
        return student

    # ---- teachers ----

    def _teacher(self, setting: Setting, how: Method, images: Images, seed: int) -> nn.Module:
        positions = how.maps or how.blocks or how.settings.get("ot_positions") == "all"
        name = setting.teacher_of(seed)
        if "delta_weight" in (how.weight or ()):  # it looks at layers that are the student's own
            return lite(name, images.classes)
        if self.live:
            return copy.deepcopy(self._alive(name, images))
        if is_pretrained(name) or not positions:
            of_split = split_of(self.study.images["name"], seed)
            remembered = self.remembered(name, of_split if is_pretrained(name) else self._teacher_seed(seed))
            return remembered.rolled() if how.rolled else remembered
        if how.rolled:
            raise ValueError("a rolled teacher is a remembered one: it goes with methods that do not look at positions")
        return copy.deepcopy(self.trained(name, seed=self._teacher_seed(seed)))

    def _teacher_seed(self, seed: int) -> int:
        """Of the teacher that a seed's student learns from."""
        several = self.study.teachers > 1 and seed < _TUNING_SEED
        return _FIRST_TEACHER_SEED + seed % self.study.teachers if several else _TEACHER_SEED

    def _alive(self, name: str, images: Images) -> nn.Module:
        return lite(name, images.classes) if is_pretrained(name) else self.trained(name)

    def _remembered(self, name: str, seed: int) -> Remembered:
        """A teacher's last layer before its head, and its logits, for both views of every training image."""
        size = self.study.teacher_size
        if not is_pretrained(name):
            teacher = self.trained(name, seed=seed)
            outputs = map(torch.from_numpy, _outputs(teacher, self.images(0).train.both_views()))
            return Remembered(*outputs, f"{name}, seed {seed}, {weights_digest(teacher)}")
        images = self.images(seed) if size is None else load(**self.study.images | {"size": size}, split=seed)
        model, maps = trunk(name), []
        title = f"{name}, {weights_digest(model, without='classifier.')}"
        with torch.no_grad(), evaluating(model):
            for views in images.train.both_views().split(_BATCH):
                maps.append(model.forward_features(normalised(views, name)))
        maps = torch.cat(maps)
        return Remembered(maps, torch.zeros(len(maps), images.classes), title)

    @functools.cached_property
    def _kept(self) -> dict[str, nn.Module]:
        return {}

    def trained(self, name: str, coarse: bool = False, seed: int = _TEACHER_SEED) -> nn.Module:
        """A network trained on the whole pool, from the cache if it was trained before.

        Args:
            name: As `networks.build` takes it.
            coarse: On three coarse classes only: what a student that starts from earlier weights has learnt.
            seed: Of its weights and its training.
        """
        study, images = self.study, self.images(0)
        steps = study.steps * 2 if coarse else study.teacher_steps
        kind = f"{study.images['name']}-{images.size}-{len(images.train)}-{name}-{steps}-{seed}{'-coarse' * coarse}"
        kind += f"-{_sources_digest()}"  # a teacher that other code trained is another teacher
        model = networks.build(name, 3 if coarse else images.classes, images.channels, images.size, seed)
        if kind not in self._kept:
            path = cache_folder() / "study" / f"{kind}.safetensors"
            if path.is_file():
                model.load_state_dict(load_file(path))
            else:
                data = images.train
                if coarse:
                    data = Pixels(data.pixels, data.labels % 3, data.rows)
                self._train(model, None, data, images, seed, {"ot_weight": 0.0, "max_steps": steps})
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file(model.state_dict(), path)
            self._kept[kind] = model.eval()
        return self._kept[kind]

    # ---- students ----

    def _student(self, setting: Setting, images: Images, seed: int) -> nn.Module:
        if is_pretrained(setting.student):
            torch.manual_seed(seed)
            return lite(setting.student, images.classes)
        student = networks.build(setting.student, images.classes, images.channels, images.size, seed)
        if setting.start == "earlier":
            earlier = self.trained(setting.student, coarse=True, seed=seed)
            state = {k: v for k, v in earlier.state_dict().items() if not k.startswith(("head.", "classifier."))}
            student.load_state_dict(state, strict=False)
        elif setting.start == "kept":
            student = networks.kept_neurons(self.trained(setting.teacher_of(seed)), student.widths, seed)
        return student


def weights_digest(model: nn.Module, without: str | None = None) -> str:
    """First 12 digits of the SHA-256 of a model's weights, by name.

    Args:
        model: The model.
        without: Parameters whose names begin so are left out (a head that is drawn anew).
    """
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if without is None or not name.startswith(without):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@functools.cache
def _sources_digest() -> str:
    """Of the files that say how a teacher is built and what it is trained on."""
    text = b"".join(Path(module.__file__).read_bytes() for module in (networks, images_module))
    return hashlib.sha256(text).hexdigest()[:8]


def _maps_layer(model: nn.Module) -> str:
    """The last layer that still has positions."""
    if isinstance(model, Remembered):
        return "maps:nchw"
    if isinstance(model, ConvNet):
        return f"blocks.{len(model.blocks) - 1}"
    return "block:-1" if not hasattr(model, "timm_model") else "last"


@torch.no_grad()
def _accuracy(model: nn.Module, data: Pixels) -> float:
    with evaluating(model):
        right = [(_logits(model(x)).argmax(-1) == y).sum() for x, y in _batches(data)]
    return float(sum(right)) / len(data)


def _probe(student: nn.Module, few: Pixels, images: Images) -> dict[str, float]:
    """A linear head on the frozen representation (logistic regression on standardised features)."""
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    head.fit(_outputs(student, few.pixels)[0], few.labels.numpy())
    parts = {"test": images.test, "validation": images.validation}
    return {
        name: float(head.score(_outputs(student, part.pixels)[0], part.labels.numpy())) for name, part in parts.items()
    }


@torch.no_grad()
def _outputs(model: nn.Module, pixels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The representation before the head, pooled, and the logits of every image."""
    layer = resolve_layer(model, networks.last_layer(model))
    taps, features, logits = Taps(model, [layer]), [], []
    with evaluating(model):
        for x in pixels.split(_BATCH):
            with taps.recording():
                logits.append(_logits(model(x)))
            activation = taps.take()[layer]
            features.append(pair_neurons(activation, activation, positions="pooled", tokens="auto")[0])
    taps.close()
    return torch.cat(features).numpy(), torch.cat(logits).numpy()


def _batches(data: Pixels):
    return zip(data.pixels.split(_BATCH), data.labels.split(_BATCH), strict=True)


def _logits(outputs: Any) -> Tensor:
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits


def results_folder() -> Path:
    """Where the results of the repository stand."""
    return Path(__file__).parent / "results"
