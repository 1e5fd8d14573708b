"""A disk that is full, or a folder that cannot be written: a clear error, and what was saved before is kept."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.training.runs import make_trainer, training_logs

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def no_space(*args, **kwargs):
    raise OSError(28, "No space left on device")


def no_space_in_safetensors(*args, **kwargs):
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def no_space_in_torch(*args, **kwargs):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def no_space_in_a_stream(*args, **kwargs):
    raise RuntimeError("basic_ios::clear: iostream error")


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("transformers.modeling_utils.safe_save_file", no_space_in_safetensors),
        ("torch.save", no_space_in_torch),
        ("torch.save", no_space),
        ("torch.save", no_space_in_a_stream),
        ("hf_reprot.training.checkpointing.save_transfer_state", no_space_in_safetensors),
        ("transformers.trainer_callback.TrainerState.save_to_json", no_space),
    ],
)
def test_a_write_that_fails(tmp_path, monkeypatch, where, error):
    trainer = make_trainer(tmp_path, **SAVING)
    save, kept = trainer._save_checkpoint, {}

    def failing_from_step_2(model, trial):
        if trainer.state.global_step == 2:
            kept.update(content(tmp_path))
            monkeypatch.setattr(where, error)
        save(model, trial)

    trainer._save_checkpoint = failing_from_step_2
    with pytest.raises(OSError, match=r"checkpoint-2 could not be written .*resume_from_checkpoint=True"):
        trainer.train()
    assert any(name.startswith("checkpoint-1") for name in kept)
    assert content(tmp_path) == kept
    monkeypatch.undo()
    resumed = make_trainer(tmp_path, **SAVING)
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in training_logs(resumed)] == [1, 2, 3]


@pytest.mark.parametrize("save_only_model", [False, True])
def test_an_upload_that_fails_is_called_what_it_is(tmp_path, monkeypatch, save_only_model):
    from hf_reprot.training.publishing import Publisher

    trainer = make_trainer(tmp_path, save_only_model=save_only_model, **SAVING)

    def refused(*args, **kwargs):
        raise OSError("403 Forbidden")

    monkeypatch.setattr(trainer.args, "push_to_hub", True)
    monkeypatch.setattr(Publisher, "push_checkpoint", refused)
    with pytest.raises(OSError, match=r"^403 Forbidden$"):
        trainer.train()
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = sum(p.numel() for p in _student().parameters()) * 4
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(6 * size)}", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _student():
    from tests.toy_models import vit

    return vit(width=96)


def test_a_disk_that_fills_up(small_disk):
    """AdamW's checkpoint takes three times the weights: the second one does not fit."""
    trainer = make_trainer(small_disk / "run", model=_student(), optim="adamw_torch", **SAVING)
    with pytest.raises(OSError, match=r"checkpoint-2 could not be written .*disk full"):
        trainer.train()
    assert [path.name for path in (small_disk / "run").iterdir()] == ["checkpoint-1"]
    resumed = make_trainer(small_disk / "run", model=_student(), optim="adamw_torch", max_steps=3)
    resumed.train(resume_from_checkpoint=True)
    assert all(torch.isfinite(p).all() for p in resumed.model.parameters())


def test_a_folder_that_cannot_be_written_is_refused_before_training(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"output_dir .* cannot be written to \(Read-only file system\)"):
        make_trainer(small_disk, **SAVING)


def test_a_file_in_the_place_of_the_folder_is_refused_before_training(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        make_trainer(tmp_path / "taken" / "run", **SAVING)


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    from PIL import Image
    from transformers import ViTImageProcessor

    from hf_reprot.data.datasets import load_image_dataset

    for i in range(24):
        path = tmp_path / "images" / f"class {i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((20, 20), 50 + i).convert("RGB").save(path)
    damaged = sorted((tmp_path / "images").rglob("*.png"))[18]
    good = damaged.read_bytes()
    damaged.write_bytes(good[: len(good) // 2])

    def trainer():
        processor = ViTImageProcessor(size={"height": 16, "width": 16})
        return make_trainer(
            tmp_path / "run",
            data=load_image_dataset(tmp_path / "images")["train"],
            train_sampling_strategy="sequential",
            trainer={"processing_class": processor},
            **SAVING,
        )

    with pytest.raises(ValueError, match=damaged.name):
        trainer().train()
    kept = content(tmp_path / "run")
    assert any(name.startswith("checkpoint-1") for name in kept)
    damaged.write_bytes(good)
    resumed = trainer()
    resumed.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in training_logs(resumed)] == [1, 2, 3]
