"""Launchers as users call them: what works, and what would silently train something else and is refused."""

import json

import pytest
import torch
from transformers import ViTImageProcessor

from tests.distributed.launching import free_port, start, torchrun
from tests.toy_models import resnet
from tests.training.runs import make_trainer

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

# As `accelerate config` writes them.
MULTI_CPU = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: MULTI_CPU
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
mpirun_config:
  mpirun_ccl: '1'
  mpirun_hostfile: null
num_machines: 1
num_processes: 2
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: true
"""
ONE_PROCESS = """compute_environment: LOCAL_MACHINE
debug: false
distributed_type: 'NO'
downcast_bf16: 'no'
enable_cpu_affinity: false
machine_rank: 0
main_training_function: main
mixed_precision: bf16
num_machines: 1
num_processes: 1
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: true
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    resnet(labels=10).save_pretrained(folder / "teacher")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "teacher")
    (folder / "run.yaml").write_text(
        f"dataset: digits\nstudent: resnet10t\nimage_size: 32\nteacher: {folder / 'teacher'}\n"
        f"output_dir: {folder / 'student'}\nmax_steps: 2\nmax_train_samples: 32\nmax_eval_samples: 8\n"
        "report_to: tensorboard\nlogging_steps: 1\nper_device_train_batch_size: 8\n"
    )
    return folder


def accelerate_launch(recipe, launch_file: str):
    path = recipe / "launch.yaml"
    path.write_text(launch_file)
    return start(
        "accelerate.commands.launch",
        "--config_file",
        str(path),
        "--main_process_port",
        str(free_port()),
        "-m",
        "hf_reprot.cli",
        "train",
        str(recipe / "run.yaml"),
    )


def test_a_launch_file_for_one_process(recipe):
    done = accelerate_launch(recipe, ONE_PROCESS)
    assert done.returncode == 0, done.stderr[-2000:]
    state = json.loads((recipe / "student" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert all(name in state["log_history"][0] for name in ("ot_loss", "task_loss"))
    assert _scalars(recipe / "student" / "runs")["train/ot_loss"] == pytest.approx(
        [entry["ot_loss"] for entry in state["log_history"] if "loss" in entry]
    )


def test_a_launch_file_for_several_processes_on_cpus_is_refused(recipe):
    """accelerate starts one process and says nothing."""
    done = accelerate_launch(recipe, MULTI_CPU)
    assert done.returncode != 0
    assert "asked for several processes on CPUs and started only this one" in done.stderr
    assert "torchrun --nproc_per_node N script.py --use_cpu" in done.stderr


@pytest.mark.skipif(torch.cuda.device_count() == 1, reason="with one GPU, two processes would share it")
def test_two_processes_from_the_command_line(recipe):
    folder = recipe / "two"
    done = start("hf_reprot.cli", "train", str(recipe / "run.yaml"), "--processes", "2", "--output_dir", str(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "destroy_process_group" not in done.stderr  # nothing is left to the end of Python
    assert done.stdout.count("eval_accuracy") >= 1
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    assert json.loads((folder / "transfer.json").read_text())["training"]["processes"] == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs, torchrun without --use_cpu is right")
def test_processes_that_would_train_apart_are_refused(recipe):
    done = torchrun("-m", "hf_reprot.cli", "train", str(recipe / "run.yaml"), "--output_dir", str(recipe / "apart"))
    assert done.returncode != 0
    assert "every process would train a model of its own" in done.stderr
    assert not list((recipe / "apart").rglob("model.safetensors"))


def test_fsdp_that_is_not_active_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP needs accelerators"):
        make_trainer(tmp_path)


def test_a_teacher_that_deepspeed_took_apart_is_refused(tmp_path):
    """What ZeRO-3 does to a model that is loaded under it; DeepSpeed itself is not tested."""
    teacher = resnet()
    next(teacher.parameters()).ds_id = 0
    with pytest.raises(ValueError, match="before the settings are made"):
        make_trainer(tmp_path, teacher=teacher)


def _scalars(folder) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = {path.parent for path in folder.rglob("events.out.tfevents.*")}
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    return {tag: [event.value for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
