"""Pushing while training: every strategy, pushes that fail in the background, and what a failed push leaves on disk."""

import json

import pytest

from hf_reprot.hub.record import RunRecord
from tests.hub_server.fixtures import READ_TOKEN, WRITE_TOKEN, hub, run_with_hub  # noqa: F401

pytestmark = pytest.mark.slow

_START = """
import json, sys
import torch
from pathlib import Path
from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.hub.errors import HubError
from tests.toy_models import Images, resnet, vit

facts = {}

def trainer(folder, student=None, **settings):
    settings = dict(max_steps=2, save_strategy="steps", save_steps=1, push_to_hub=True) | settings
    return OTTransferTrainer(
        model=student or vit(), teacher_model=resnet(seed=1),
        args=OTTransferConfig(
            output_dir=folder, per_device_train_batch_size=8, logging_steps=1, use_cpu=True, report_to="none",
            disable_tqdm=True, hub_model_id=f"ada/{folder}", hub_always_push=True, **settings),
        train_dataset=Images(16))
"""
_END = "\nprint(json.dumps(facts))\n"
_STUDENT = {"README.md", "config.json", "model.safetensors", "transfer.json"}
_STATE = {"optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "transfer_state.safetensors"}


def _run(run, script, **options):
    done = run(_START + script + _END, **options)
    for secret in (WRITE_TOKEN, READ_TOKEN):
        assert secret not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def _below(files, folder):
    return {name.removeprefix(folder + "/") for name in files if name.startswith(folder + "/")}


def test_every_strategy_pushes_whole_students(hub, run_with_hub, tmp_path):  # noqa: F811
    hub.fail_next("POST", "/api/models/ada/every_save/commit/", status=507, message="The disk is full")
    facts, log = _run(
        run_with_hub,
        """
from huggingface_hub import snapshot_download
for strategy in ("end", "every_save", "checkpoint", "all_checkpoints"):
    run = trainer(strategy, hub_strategy=strategy, save_total_limit=1)
    run.train()
    run.push_to_hub()
    facts[strategy] = sorted(path.name for path in Path(strategy).rglob("*"))
# A run goes on from the checkpoint on the Hub.
checkpoint = Path(snapshot_download("ada/checkpoint", allow_patterns="last-checkpoint/*")) / "last-checkpoint"
resumed = trainer("resumed", push_to_hub=False, save_strategy="no", max_steps=3)
resumed.train(resume_from_checkpoint=str(checkpoint))
facts["resumed"] = [resumed.state.global_step, len(resumed.state.log_history)]
""",
        cwd=tmp_path,
    )
    assert facts.pop("resumed")[0] == 3
    titles = {name: [c.title for c in hub.commits(f"ada/{name}")][:-1][::-1] for name in facts}
    steps = ["Training in progress, step 1", "Training in progress, step 2"]
    assert titles == {
        "end": ["End of training"],
        "every_save": [steps[1], "End of training"],
        "checkpoint": [*steps, "End of training"],
        "all_checkpoints": [*steps, "End of training"],
    }
    assert "A push in the background failed: the Hub has no room for ada/every_save (507 The disk is full)" in log
    for name, on_disk in facts.items():
        assert "training_args.bin" not in on_disk
        assert not [file for file in on_disk if file.startswith("_")]
        for commit in hub.commits(f"ada/{name}")[:-1]:
            assert set(commit.files) >= _STUDENT
            assert not [file for file in commit.files if file.endswith("training_args.bin")]
    for name in ("end", "every_save"):
        assert not [file for file in hub.files(f"ada/{name}") if file.endswith((".pt", ".pth", "trainer_state.json"))]
    assert _below(hub.files("ada/checkpoint"), "last-checkpoint") >= _STATE
    assert _below(hub.files("ada/all_checkpoints"), "checkpoint-1") >= _STATE
    assert _below(hub.files("ada/all_checkpoints"), "checkpoint-2") >= _STATE
    # The weights of a commit are those of its record.
    first, second = [c for c in hub.commits("ada/checkpoint") if c.title in steps][::-1]
    assert first.files["model.safetensors"] != second.files["model.safetensors"]
    assert first.files["model.safetensors"] == first.files["last-checkpoint/model.safetensors"]
    assert json.loads(hub.store.read(first.files["transfer.json"]))["step"] == 1


_REFUSED = """
import os

def refusals():
    run = trainer("student", push_to_hub=False, save_strategy="no")
    run.train()
    messages = []
    for blocking in (True, False):
        try:
            messages.append(str(run.push_to_hub(blocking=blocking).exception()))
        except HubError as error:
            messages.append(str(error))
    try:
        trainer("other")
        messages.append("built")
    except HubError as error:
        messages.append(str(error))
    return messages
"""


def test_a_failed_push_leaves_the_student_on_disk(hub, run_with_hub, tmp_path):  # noqa: F811
    script = """
facts["the token may only read"] = refusals()
del os.environ["HF_TOKEN"]
facts["no token for the Hub was found"] = refusals()
"""
    (tmp_path / "away").mkdir()
    facts, _ = _run(run_with_hub, _REFUSED + script, cwd=tmp_path, token=READ_TOKEN)
    away, _ = _run(
        run_with_hub,
        _REFUSED + '\nfacts["the Hub cannot be reached"] = refusals()',
        cwd=tmp_path / "away",
        env={"HF_ENDPOINT": "http://127.0.0.1:9"},
    )
    for reason, messages in (facts | away).items():
        for message in messages:
            assert message.startswith(reason)
            assert "\n" not in message
        assert messages[0].endswith("The trained student is safe in student")
        assert messages[1] == messages[0]
    for folder in (tmp_path / "student", tmp_path / "away" / "student"):
        assert {path.name for path in folder.iterdir()} >= _STUDENT
        assert RunRecord.load(folder).step == 2
    with pytest.raises(KeyError):
        hub.repo("ada/student")


@pytest.mark.distributed
def test_one_process_of_two_pushes(hub, run_with_hub, tmp_path):  # noqa: F811
    (tmp_path / "run.py").write_text(
        _START
        + """
import os

run = trainer("pair", hub_strategy="checkpoint", max_steps=1)
run.train()
commit = run.push_to_hub()
assert (commit is None) == (run.args.process_index == 1)
run.end() if hasattr(run, "end") else None
os._exit(0)  # past the interpreter's teardown, in which threads of gloo now and then abort a process
"""
    )
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    run_with_hub([*launch, "--rdzv_endpoint", "127.0.0.1:0", "run.py"], cwd=tmp_path)
    latest, progress, _ = hub.commits("ada/pair")
    assert (latest.title, progress.title) == ("End of training", "Training in progress, step 1")
    assert _below(progress.files, "last-checkpoint") >= {"optimizer.pt", "rng_state_0.pth"}
    assert json.loads(hub.files("ada/pair")["transfer.json"])["hardware"].startswith("2 processes, each on a CPU")


def test_an_adapter_goes_up_as_an_adapter(hub, run_with_hub, tmp_path):  # noqa: F811
    facts, _ = _run(
        run_with_hub,
        """
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ViTForImageClassification
vit(seed=3).save_pretrained("base", push_to_hub=True, repo_id="ada/base", commit_message="base")
base = ViTForImageClassification.from_pretrained("ada/base")
student = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"]))
run = trainer("adapter", student, hub_strategy="end")
run.train()
run.push_to_hub()
pixels = torch.randn(2, 3, 16, 16)
loaded = PeftModel.from_pretrained(ViTForImageClassification.from_pretrained("ada/base"), "ada/adapter").eval()
with torch.no_grad():
    facts["equal"] = torch.equal(loaded(pixels).logits, run.model.eval()(pixels).logits)
run.save_model("again", _internal_call=True)
facts["card"] = "hf_reprot" in Path("again/README.md").read_text()
""",
        cwd=tmp_path,
    )
    assert facts == {"equal": True, "card": True}
    files = hub.files("ada/adapter")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "transfer.json"} <= set(files)
    card = files["README.md"].decode()
    for fact in ("library_name: peft", "base_model: ada/base", "base_model_relation: adapter"):
        assert fact in card
