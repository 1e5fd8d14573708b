"""What a checkpoint of a transfer run holds beside the stock Trainer's, and loading weights strictly or not at all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

logger = logging.getLogger(__name__)

STATE_FILE = "transfer_state.safetensors"
PICKLES = ("training_args.bin",)
PROCESSES = "processes"  # entry of the state: how many processes the run had
# Entries that rest on a process's own samples where `ot_global_batch` is off.
_OF_ONE_PROCESS = ("running.", "watch.")


def save_transfer_state(folder: str | Path, state: Mapping[str, Tensor], rank: int | None = None) -> None:
    """Writes the state of a transfer (running moments, sums for the log) beside the weights.

    Args:
        folder: The checkpoint's folder.
        state: Tensors by name; may be empty.
        rank: Number of the process, where each process has a state of its own.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, _state_path(folder, rank))


def load_transfer_state(folder: str | Path, rank: int | None = None, processes: int = 1) -> dict[str, Tensor] | None:
    """Reads what `save_transfer_state` wrote; None where the checkpoint has none.

    Where each process matches on its own samples, its moments belong to it. If the run that wrote the checkpoint had
    another number of processes, or one of the two shares the samples and the other does not, they are left out with a
    warning, and start anew; the rest is the same on every process and is read from the first one's.

    Args:
        folder: The checkpoint's folder.
        rank: Number of this process, where each process has a state of its own; None where all share one.
        processes: How many processes this run has.

    Raises:
        ValueError: the file cannot be read.
    """
    shared, own = _state_path(folder, None), _state_path(folder, rank)
    first = shared if shared.is_file() else _state_path(folder, 0)
    path = own if own.is_file() else first
    if not path.is_file():
        return None
    state = _read(path)
    wrote = int(state.get(PROCESSES, 1))
    if (path == own and (rank is None or wrote == processes)) or wrote == processes == 1:
        return state
    state = _read(first)
    if not rank and any(name.startswith("running.") for name in state):
        logger.warning(
            "%s holds %s, and this run carries %s (plan_momentum, ot_global_batch): they start anew. To go on with "
            "them, resume with as many processes as before and the same ot_global_batch",
            folder,
            _moments_of(None if first == shared else wrote),
            _moments_of(None if rank is None else processes),
        )
    return {name: value for name, value in state.items() if not name.startswith(_OF_ONE_PROCESS)}


def _moments_of(processes: int | None) -> str:
    return "moments of all samples" if processes is None else f"moments of each of {processes} process(es)"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises several kinds; each means the same to a user
        raise ValueError(f"{path} is damaged ({error}): resume from an earlier checkpoint") from error


def _state_path(folder: str | Path, rank: int | None) -> Path:
    path = Path(folder) / STATE_FILE
    return path if rank is None else path.with_name(f"{path.stem}_{rank}{path.suffix}")


def load_weights_strictly(model: PreTrainedModel, folder: str | Path) -> None:
    """Loads a checkpoint's weights into the live model, every one of them, or raises.

    `save_pretrained` writes the key names of the library's original checkpoints, the live module may have others, and
    only `from_pretrained` knows how to go from one to the other. So the weights are read by `from_pretrained` into a
    second model, which then hands them over name by name.

    Args:
        model: The live, unwrapped model.
        folder: A folder that `save_pretrained` wrote.

    Raises:
        ValueError: weights are missing, unexpected, of another shape, or unreadable. The model is unchanged.
    """
    folder = Path(folder)
    try:
        loaded, report = type(model).from_pretrained(
            folder,
            config=model.config,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            dtype=_dtype(model),
            ignore_mismatched_sizes=True,  # so that the report names them, and the error below is ours
        )
    except Exception as error:
        raise ValueError(f"the weights in {folder} cannot be read ({error}): use an earlier checkpoint") from error
    ignorable = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = [n if isinstance(n, str) else n[0] for n in report.get(problem) or ()]
        names = sorted(name for name in names if name not in ignorable)
        if names:
            raise ValueError(
                f"the weights in {folder} do not fit the model: {problem.replace('_', ' ')} {', '.join(names[:5])}"
                f"{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
            )
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.tie_weights()


def has_plain_weights(folder: str | Path) -> bool:
    """Whether a folder holds safetensors of a whole model (not an adapter's, not a sharded optimiser's format)."""
    return any((Path(folder) / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def remove_pickles(folder: str | Path) -> None:
    """Deletes the pickled training arguments that the stock Trainer writes: nothing reads them, and no one should."""
    for name in PICKLES:
        (Path(folder) / name).unlink(missing_ok=True)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
