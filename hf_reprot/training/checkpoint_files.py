"""Which checkpoint a run can go on from: whole ones only, told apart from what an interrupted write left."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..utils.safetensors_only import ADAPTER_WEIGHTS, check_folder

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"


def check_whole(folder: str | os.PathLike) -> None:
    """Looks for what an interrupted, failed or damaged write leaves out, without reading the weights.

    Args:
        folder: A checkpoint of a run that is neither sharded nor DeepSpeed's: those have files of their own.

    Raises:
        ValueError: a file is missing, cut off or not of its format; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no checkpoint {folder}")
    state = folder / _STATE
    if not state.is_file():
        raise _damaged(folder, f"{_STATE}, which is written last, is missing")
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(folder, f"{_STATE} is cut off or no JSON") from error
    check_weights(folder)
    for name in ("optimizer.pt", "scheduler.pt", *_rng_files(folder), *(p.name for p in folder.glob("scaler.pt"))):
        path = folder / name
        if not path.is_file():
            raise _damaged(folder, f"{name} is missing (a run with save_only_model cannot be resumed)")
        if not zipfile.is_zipfile(path):
            raise _damaged(folder, f"{name} is cut off or no file of torch.save")


def check_weights(folder: str | os.PathLike) -> None:
    """Refuses a checkpoint whose weights are missing, damaged or no safetensors; they are not read.

    Raises:
        ValueError: the message names the file.
    """
    folder = Path(folder)
    # What the stock trainer looks for; where it finds none, it takes pickles of the same names.
    stock = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, ADAPTER_WEIGHTS)
    named = list(folder.glob(f"*/{ADAPTER_WEIGHTS}"))  # PEFT has folders for adapters with names
    if not named and not any((folder / name).is_file() for name in stock):
        raise _damaged(folder, "the weights are missing")
    try:
        check_folder(folder, deep=True)
    except ValueError as error:
        raise _damaged(folder, str(error)) from None


def last_whole_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The checkpoint with the most steps that is whole; damaged ones are passed over with a warning.

    None where all are damaged, which a warning says: a run that was stopped while it wrote its first checkpoint has
    nothing to go on from and starts anew.

    Raises:
        ValueError: there is no checkpoint at all.
    """
    found = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and folder.is_dir():
            found.append((int(number), folder))
    for _, folder in sorted(found, reverse=True):
        try:
            check_whole(folder)
        except ValueError as error:
            logger.warning("%s", error)
        else:
            return str(folder)
    if found:
        logger.warning("No checkpoint in %s is whole: the run starts anew", output_dir)
        return None
    raise ValueError(f"No valid checkpoint found in output directory ({output_dir})")


def check_writable(folder: str | os.PathLike) -> None:
    """Tries to write into the folder of a run before hours are spent on what could not be saved.

    Raises:
        PermissionError: the folder cannot be made or written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(folder)) as file:
            file.write(b"0")
            file.flush()
    except OSError as error:
        raise PermissionError(
            f"output_dir {folder} cannot be written to ({error.strerror or error}): choose another folder, or "
            "save_strategy='no' to train without saving"
        ) from error


@contextlib.contextmanager
def explained_failure(folder: str | os.PathLike, written: Callable[[], bool], *, remove: bool) -> Iterator[None]:
    """Says in one line that a checkpoint could not be written, and leaves nothing of it behind.

    Args:
        folder: The checkpoint that is written inside.
        written: Whether all of it has been written: what fails then is something else, such as an upload.
        remove: Delete what was written of it (one process of a run does).
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if written() or (isinstance(error, RuntimeError) and not _is_write_error(error)):
            raise
        if remove:
            shutil.rmtree(folder, ignore_errors=True)
        raise OSError(
            f"the checkpoint {folder} could not be written ({error}): is the disk full? Earlier checkpoints are as "
            "they were; resume from the last one with resume_from_checkpoint=True"
        ) from error


def _is_write_error(error: RuntimeError) -> bool:
    """Whether torch.save could not write: it raises a bare RuntimeError, also where the file system said why."""
    return any(
        part in str(error)
        for part in ("PytorchStreamWriter", "inline_container", "file write", "unexpected pos", "iostream", "basic_ios")
    )


def _damaged(folder: Path, reason: str) -> ValueError:
    return ValueError(f"the checkpoint {folder} is damaged or unfinished: {reason}. Resume from an earlier one")


def _rng_files(folder: Path) -> list[str]:
    """The generator states that the run which wrote the checkpoint had: one a process."""
    states = sorted(folder.glob(f"{Path(STATE_FILE).stem}*.safetensors"))
    if not states:
        raise _damaged(folder, f"{STATE_FILE} is missing (a checkpoint of another trainer cannot be resumed)")
    with safe_open(states[0], framework="pt") as file:
        processes = int(file.get_tensor(PROCESSES)) if PROCESSES in file.keys() else 1  # noqa: SIM118
    return ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]


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
        kind: Any = type(model)
        loaded, report = kind.from_pretrained(
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
