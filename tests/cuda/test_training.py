"""Training runs on the device: as on the CPU, in mixed precision, compiled, and under what spreads a run."""

import json

import pytest
import torch

from hf_reprot import load_student
from tests.distributed.launching import torchrun
from tests.toy_models import resnet, vit
from tests.training.runs import make_trainer, training_logs

from .places import DEVICE, ON_DEVICE, REHEARSED

pytestmark = ON_DEVICE
PAIRS = ["last", "vit.layers.0=resnet.encoder.stages.0"]
SETTINGS = {"use_cpu": REHEARSED, "max_steps": 3, "kd_weight": 1.0, "layer_pairs": PAIRS, "learning_rate": 1e-3}


def losses(folder, **settings):
    trainer = make_trainer(folder, **SETTINGS | settings)
    trainer.train()
    return [entry["loss"] for entry in training_logs(trainer)], trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Losses of a run on the CPU in float32."""
    return losses(tmp_path_factory.mktemp("plain"), use_cpu=True)[0]


@pytest.fixture(autouse=True)
def whole_digits():
    """No TF32: the CPU has none."""
    former = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = former


def test_a_run_has_the_losses_of_the_cpu(plain, tmp_path):
    found, trainer = losses(tmp_path)
    assert trainer.args.device.type == DEVICE
    assert found == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize(
    "settings",
    [
        {"ot_positions": "all", "layer_pairs": ["vit.layers.1=resnet.encoder.stages.0"]},
        {"ot_method": "gaussian"},
        {"ot_method": "random"},
        {"plan_momentum": 0.9},
        {"layer_pairs": "auto", "layer_samples": 32},
        {"teacher": lambda: [resnet(seed=1), resnet(seed=2)]},
    ],
    ids=["positions", "gaussian", "random", "momentum", "auto layers", "two teachers"],
)
def test_every_way_of_transport_runs(settings, tmp_path):
    teacher = settings.get("teacher", lambda: resnet(seed=1))()
    given = {name: value for name, value in settings.items() if name != "teacher"}
    found, trainer = losses(tmp_path, teacher=teacher, **given)
    assert all(torch.isfinite(torch.tensor(found)))
    assert all(entry["ot_dropped"] == 0 for entry in training_logs(trainer))


def test_bfloat16(plain, tmp_path):
    found, _ = losses(tmp_path, bf16=True)
    assert found == pytest.approx(plain, rel=1e-1)


def test_compiled(plain, tmp_path):
    found, _ = losses(tmp_path, torch_compile=True, torch_compile_backend="eager" if REHEARSED else "inductor")
    assert found == pytest.approx(plain, rel=2e-2)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch"])
def test_a_step_without_a_finite_gradient_changes_nothing(optim, tmp_path):
    trainer = make_trainer(tmp_path, **SETTINGS | {"optim": optim, "max_steps": 2})
    step = trainer.training_step
    spoiled = []

    def training_step(model, *args, **kwargs):
        loss = step(model, *args, **kwargs)
        if not spoiled:
            spoiled.append({name: p.detach().clone() for name, p in model.named_parameters()})
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.nan)
        elif len(spoiled) == 1:  # the second step begins where the first did
            spoiled.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return loss

    trainer.training_step = training_step
    trainer.train()
    assert all(torch.equal(value, spoiled[1][name]) for name, value in spoiled[0].items())
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_saved_and_loaded(tmp_path):
    _, trainer = losses(tmp_path)
    trainer.save_model(tmp_path / "student")
    loaded = load_student(tmp_path / "student")
    assert type(loaded) is type(vit())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value.cpu(), loaded.state_dict()[name]), name


@pytest.mark.parametrize("job", ["collectives", "ddp", "fsdp2"])
def test_one_process_of_a_distributed_run(job, plain, tmp_path):
    """On NCCL; in a rehearsal on gloo, where accelerate wraps nothing for one process."""
    run = torchrun("--module", "tests.cuda.worker", job, str(tmp_path), processes=1)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    if job == "collectives":
        assert found["merged"] < 1e-5
    else:
        assert found["losses"] == pytest.approx(plain, rel=2e-2)
    if job == "fsdp2":
        assert found["gradient"] < 1e-3
    if not REHEARSED:
        assert found["wrapper"] == {"collectives": "", "ddp": "DistributedDataParallel", "fsdp2": "DTensor"}[job]
