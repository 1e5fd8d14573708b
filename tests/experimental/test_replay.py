"""Replayed features: the gradient that they add, in a Trainer as it comes, and what is refused."""

import socket

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from hf_reprot.experimental.latent import LatentTransport
from hf_reprot.experimental.latent.replay import FeatureReplayCallback
from tests.tiny_models import transformers_model
from tests.toy_models import resnet

WIDTH, CLASSES = 6, 4


class Student(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(5, WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, labels=None):
        logits = self.classifier(self.body(x).relu())
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Rows(torch.utils.data.Dataset):
    def __init__(self, n=64):
        generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 5, generator=generator), torch.arange(n) % 2

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"x": self.x[i], "labels": self.y[i]}


@pytest.fixture(scope="module")
def latent():
    labels = torch.arange(60) % 2 + 2
    features = torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(0)) + 3 * (labels[:, None] - 2)
    return LatentTransport(dimension=3, steps=20).fit(features, labels)


def train(folder, model, callbacks, **settings):
    defaults = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 0.1, "optim": "sgd", "seed": 0}
    defaults |= {"lr_scheduler_type": "constant", "max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "no"}
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", disable_tqdm=True, **{**defaults, **settings}
    )
    trainer = Trainer(model, arguments, train_dataset=Rows(), callbacks=callbacks)
    trainer.train()
    return trainer


class Seen(nn.Module):
    """The student, which notes the batches it is trained on."""

    def __init__(self, student):
        super().__init__()
        self.student, self.batches = student, []

    def forward(self, x, labels=None):
        self.batches.append((x.clone(), labels.clone()))
        return self.student(x, labels)


@pytest.mark.parametrize(("accumulated", "largest"), [(1, 0.0), (3, 0.0), (2, 0.05)])
def test_steps_are_those_of_the_whole_loss(latent, tmp_path, accumulated, largest):
    """Against a plain loop: task loss and replayed loss added, then clipped, then one step of SGD."""
    seen = Seen(Student())
    replay = FeatureReplayCallback(latent, "student.classifier", weight=0.7, batch_size=16, seed=3)
    settings = {"gradient_accumulation_steps": accumulated, "max_grad_norm": largest}
    trainer = train(tmp_path, seen, [replay], **settings)
    twin = Student()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for step in range(2):
        batches = seen.batches[step * accumulated : (step + 1) * accumulated]
        assert len(batches) == accumulated
        x, y = latent.sample(16, generator=torch.Generator().manual_seed(3 * 1_000_003 + step))
        replayed = F.cross_entropy(twin.classifier(x), y)
        (sum(twin(*batch)["loss"] for batch in batches) / accumulated + 0.7 * replayed).backward()
        if largest:
            assert nn.utils.clip_grad_norm_(twin.parameters(), largest) > largest
        optimizer.step()
        optimizer.zero_grad()
        assert trainer.state.log_history[step]["replay_loss"] == pytest.approx(replayed.item(), abs=1e-5)
    for ours, theirs in zip(seen.student.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_old_classes_are_kept(latent, tmp_path):
    x, y = latent.sample(400, generator=torch.Generator().manual_seed(9))
    right = {}
    for replays in (True, False):
        student = Student()
        nn.init.zeros_(student.classifier.weight)
        callbacks = [FeatureReplayCallback(latent, batch_size=32)] if replays else []
        train(tmp_path, student, callbacks, max_steps=60)
        right[replays] = (student.classifier(x).argmax(1) == y).float().mean().item()
    assert right[True] > 0.75
    assert right[False] < 0.1


def test_loss_scaling_is_undone_by_the_optimiser(latent):
    student = Student()
    replay = FeatureReplayCallback(latent, batch_size=16)
    replay.on_train_begin(TrainingArguments("x", use_cpu=True), None, None, model=student)
    state = type("State", (), {"global_step": 4, "log_history": []})()

    class Optimizer:
        scaler = None

    replay.on_step_begin(None, state, None, optimizer=Optimizer())
    plain = student.classifier.weight.grad.clone()
    assert student.body.weight.grad is None
    student.zero_grad()
    Optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    replay.on_step_begin(None, state, None, optimizer=Optimizer())
    torch.testing.assert_close(student.classifier.weight.grad, 1024 * plain)
    sgd = torch.optim.SGD(student.parameters(), lr=0.1)
    Optimizer.scaler.unscale_(sgd)
    torch.testing.assert_close(student.classifier.weight.grad, plain)


def test_a_head_is_distilled_without_labels(tmp_path):
    features = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    unlabelled = LatentTransport(dimension=4, steps=20).fit(features)
    torch.manual_seed(5)
    teacher, student = nn.Linear(WIDTH, CLASSES), Student()
    replay = FeatureReplayCallback(unlabelled, batch_size=64, weight=5.0, teacher=teacher, temperature=2.0)
    before = (student.classifier(features).argmax(1) == teacher(features).argmax(1)).float().mean()
    train(tmp_path, student, [replay], max_steps=80)
    after = (student.classifier(features).argmax(1) == teacher(features).argmax(1)).float().mean()
    assert after > max(before + 0.1, 0.8)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("make", [lambda: resnet(), lambda: transformers_model("ViT", "ForImageClassification")])
def test_the_head_is_found(make):
    model = make()
    head = model.classifier if hasattr(model, "classifier") else model.timm_model.get_classifier()
    linear = next(m for m in head.modules() if isinstance(m, nn.Linear))
    labels = torch.arange(20) % 2
    latent = LatentTransport(dimension=2, steps=2).fit(torch.randn(20, linear.in_features), labels)
    replay = FeatureReplayCallback(latent)
    replay.on_train_begin(TrainingArguments("x", use_cpu=True), None, None, model=model)
    assert replay._head is head


def test_mistakes_are_named(latent):
    with pytest.raises(TypeError, match="latent must be a fitted LatentTransport, got str"):
        FeatureReplayCallback("latent")
    for weight in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"weight must be a finite number above 0, got {weight}"):
            FeatureReplayCallback(latent, weight=weight)
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        FeatureReplayCallback(latent, batch_size=0)
    with pytest.raises(ValueError, match="fitted without labels"):
        FeatureReplayCallback(LatentTransport(steps=1).fit(torch.randn(9, WIDTH)))
    with pytest.raises(RuntimeError, match="nothing was fitted yet"):
        FeatureReplayCallback(LatentTransport())

    def begin(model, head="auto", source=latent, **changes):
        arguments = TrainingArguments("x", use_cpu=True)
        for name, value in changes.items():
            setattr(arguments, name, value)
        FeatureReplayCallback(source, head).on_train_begin(arguments, None, None, model=model)

    begin(Student())
    with pytest.raises(ValueError, match=r"'clasifier' is no layer of the model .*Nearest: classifier"):
        begin(Student(), "clasifier")
    with pytest.raises(ValueError, match="no classifier was found in Sequential"):
        begin(nn.Sequential(nn.Linear(5, 4), nn.ReLU()))
    with pytest.raises(ValueError, match="head 'body' does not take features of width 6"):
        begin(Student(), "body")
    narrow = Student()
    narrow.classifier = nn.Linear(WIDTH, 3)
    with pytest.raises(ValueError, match="head 'classifier' has 3 logits, but latent was fitted with labels 2 to 3"):
        begin(narrow)
    frozen = Student()
    frozen.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of it is trained"):
        begin(frozen)
    with pytest.raises(ValueError, match="without DeepSpeed and FSDP"):
        begin(Student(), deepspeed="config.json")


def _one_process(rank, size, port, latent, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    student = Student()
    wrapped = nn.parallel.DistributedDataParallel(student)
    replay = FeatureReplayCallback(latent, batch_size=16)
    replay.on_train_begin(None, None, None, model=wrapped)
    state = type("State", (), {"global_step": 0})()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    rows = Rows()
    for step in range(3):
        state.global_step = step
        replay.on_step_begin(None, state, None, optimizer=optimizer)
        batch = range(16 * step + rank, 16 * step + 16, size)
        with wrapped.no_sync():  # half of the step's loss, not averaged yet
            (wrapped(rows.x[batch], rows.y[batch])["loss"] / 2).backward()
        (wrapped(rows.x[batch], rows.y[batch])["loss"] / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    if rank == 0:
        torch.save(student.state_dict(), folder / f"{size}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_two_processes_make_the_steps_of_one(latent, tmp_path):
    for size in (1, 2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if size == 1:
            _one_process(0, 1, port, latent, tmp_path)
        else:
            torch.multiprocessing.spawn(_one_process, (2, port, latent, tmp_path), nprocs=2)
    one, two = (torch.load(tmp_path / f"{size}.pt", weights_only=True) for size in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-6, rtol=1e-5)
    assert not torch.equal(one["classifier.weight"], Student().classifier.weight)
