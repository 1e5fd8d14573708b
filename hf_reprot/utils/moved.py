"""Import paths of version 0.1 that have moved: they work until 0.3, with a warning that names the new path."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

# Old module -> new module. Only modules that held public names.
MOVED_MODULES = {
    "hf_reprot.compare": "hf_reprot.commands.compare",
    "hf_reprot.demo": "hf_reprot.commands.demo",
    "hf_reprot.head": "hf_reprot.models.head",
    "hf_reprot.images": "hf_reprot.data",
    "hf_reprot.images.collator": "hf_reprot.data.collator",
    "hf_reprot.images.digits": "hf_reprot.data.digits",
    "hf_reprot.images.preprocessing": "hf_reprot.data.preprocessing",
    "hf_reprot.layers": "hf_reprot.features",
    "hf_reprot.layers.activations": "hf_reprot.features.activations",
    "hf_reprot.layers.architecture": "hf_reprot.features.architecture",
    "hf_reprot.losses.output": "hf_reprot.losses.common",
    "hf_reprot.losses.selection": "hf_reprot.experimental.topk.selection",
    "hf_reprot.losses.topk": "hf_reprot.experimental.topk.losses",
    "hf_reprot.matching": "hf_reprot.features.matching",
    "hf_reprot.ot.hierarchical": "hf_reprot.experimental.documents.hierarchical",
    "hf_reprot.ot.inverse": "hf_reprot.experimental.inverse",
    "hf_reprot.ot.latent": "hf_reprot.experimental.latent",
    "hf_reprot.ot.maps": "hf_reprot.experimental.maps",
    "hf_reprot.ot.semidiscrete": "hf_reprot.experimental.latent.semidiscrete",
    "hf_reprot.ot.topk": "hf_reprot.experimental.topk.soft_topk",
    "hf_reprot.ot.word_mover": "hf_reprot.experimental.documents.word_mover",
    "hf_reprot.recipe": "hf_reprot.commands.train",
    "hf_reprot.student": "hf_reprot.models.student",
    "hf_reprot.taps": "hf_reprot.features.taps",
    "hf_reprot.teacher": "hf_reprot.models.teacher",
    "hf_reprot.tokens": "hf_reprot.data.tokens",
    "hf_reprot.training.replay": "hf_reprot.experimental.latent.replay",
}
# Package -> name that it (or what it has become) no longer exports -> module that holds it.
MOVED_NAMES = {
    "hf_reprot.data": {
        "image_columns": "hf_reprot.data.dataset_columns",
        "is_transformed": "hf_reprot.data.dataset_columns",
        "label_names": "hf_reprot.data.labels",
        "leave_encoded": "hf_reprot.data.datasets",
    },
    "hf_reprot.losses": {
        "NeuronSelection": "hf_reprot.experimental.topk.selection",
        "SoftKNNHead": "hf_reprot.experimental.topk.losses",
        "soft_topk_loss": "hf_reprot.experimental.topk.losses",
    },
    "hf_reprot.matching": {
        "LayerPair": "hf_reprot.features.pairs",
        "block_layers": "hf_reprot.features.architecture",
        "head_paths": "hf_reprot.features.architecture",
        "last_layer": "hf_reprot.features.architecture",
        "match_pairs": "hf_reprot.features.pairs",
        "resolve_layer": "hf_reprot.features.pairs",
        "stage_layers": "hf_reprot.features.architecture",
    },
    "hf_reprot.ot": {
        "InverseTransport": "hf_reprot.experimental.inverse.fit",
        "fix_gauge": "hf_reprot.experimental.inverse.costs",
        "inverse_transport_loss": "hf_reprot.experimental.inverse.loss",
        "soft_topk": "hf_reprot.experimental.topk.soft_topk",
    },
    "hf_reprot.taps": {
        "Activation": "hf_reprot.features.activations",
        "pair_maps": "hf_reprot.features.activations",
        "pair_neurons": "hf_reprot.features.activations",
        "pooled_neurons": "hf_reprot.features.activations",
    },
    "hf_reprot.teacher": {
        "Preprocessing": "hf_reprot.data.preprocessing",
        "check_not_shared": "hf_reprot.models.modules",
        "class_name": "hf_reprot.models.modules",
        "names_of": "hf_reprot.models.modules",
    },
}


def moved_name(package: str, name: str) -> object:
    """A name that `package` exported in version 0.1, with a warning.

    Raises:
        AttributeError: the package never had it.
    """
    home = MOVED_NAMES.get(package, {}).get(name)
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    warn_moved(f"{package}.{name}", f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


class MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports a module by its old path as the module at its new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for an old path; None for all others."""
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED_MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module of the old name with what the new one holds."""
        warn_moved(spec.name, MOVED_MODULES[spec.name])
        module = ModuleType(spec.name)
        module.__path__ = []  # its old submodules are found by this finder, too
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Looks every name up in the new module."""
        new, elsewhere = importlib.import_module(MOVED_MODULES[module.__name__]), MOVED_NAMES.get(module.__name__, {})

        def find(name: str) -> object:
            return getattr(importlib.import_module(elsewhere[name]) if name in elsewhere else new, name)

        module.__dict__["__getattr__"] = find
        module.__dict__["__dir__"] = lambda: sorted({*dir(new), *elsewhere})


def install() -> None:
    """Lets old import paths work, once for a process."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedModules())  # before a folder that an older checkout left behind


def warn_moved(old: str, new: str) -> None:
    """Says that an old import path still works, and which one replaces it."""
    warnings.warn(f"{old} has moved to {new}: the old path works until hf_reprot 0.3", FutureWarning, stacklevel=3)
