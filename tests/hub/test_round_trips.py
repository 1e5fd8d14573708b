"""Train, push, and load in a process that does not have this package: the same logits, bit for bit."""

import json

import pytest
from PIL import Image

from tests.hub.isolation import BLOCK
from tests.hub_server.card import check_card, front_matter
from tests.hub_server.fixtures import WRITE_TOKEN, hub, run_with_hub  # noqa: F401

pytestmark = pytest.mark.slow

_TRAIN = """
import json
import torch
from datasets import Dataset, load_dataset
from safetensors.torch import save_file
from transformers import TimmWrapperImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor
from hf_reprot import OTTransferConfig, OTTransferTrainer
from hf_reprot.models.student import create_timm_student

NAMES = ["cat", "dog", "bird"]
torch.manual_seed(0)
pixels = torch.randn(16, 3, 32, 32)
made = Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [i % 3 for i in range(16)]})
made.push_to_hub("ada/pets")
data = load_dataset("ada/pets", split="train").with_format("torch")

def vit(width):
    return ViTForImageClassification(ViTConfig(
        hidden_size=width, num_hidden_layers=2, num_attention_heads=2, intermediate_size=2 * width, image_size=32,
        patch_size=8, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)}))

# The ViT starts from the Hub; the timm student is above the 10 MB of a regular file.
vit(16).save_pretrained("start", push_to_hub=True, repo_id="ada/start", commit_message="start")
processor = ViTImageProcessor(size={"height": 32, "width": 32})
timm_student = create_timm_student("resnet10t", NAMES, pretrained_cfg={"input_size": [3, 32, 32]})
students = {
    "vit": (ViTForImageClassification.from_pretrained("ada/start"), processor),
    "timm": (timm_student, TimmWrapperImageProcessor(pretrained_cfg=timm_student.config.pretrained_cfg)),
}
facts = {}
for name, (student, processor) in students.items():
    trainer = OTTransferTrainer(
        model=student,
        teacher_model=vit(24),
        args=OTTransferConfig(
            output_dir=name, hub_model_id=f"ada/{name}", max_steps=2, per_device_train_batch_size=8, logging_steps=1,
            learning_rate=1e-3, save_strategy="no", use_cpu=True, report_to="none", disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processor,
        compute_metrics=lambda p: {"accuracy": float((p.predictions.argmax(-1) == p.label_ids).mean())},
    )
    trainer.train()
    trainer.evaluate()
    said = {"finetuned_from": "scratch", "license": "mit"} if name == "timm" else {}
    facts[name] = trainer.push_to_hub(**said).oid
    with torch.no_grad():
        logits = trainer.model.eval()(pixel_values=pixels).logits
    save_file({"pixels": pixels, "logits": logits.contiguous()}, f"{name}-expected.safetensors")
print(json.dumps(facts))
"""

_LOAD = """
import json, re
import timm, torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline
from PIL import Image

facts = {}
photo = Image.open("photo.jpg")
for name in ("vit", "timm"):
    expected = load_file(f"{name}-expected.safetensors")
    model = AutoModelForImageClassification.from_pretrained(f"ada/{name}").eval()
    with torch.no_grad():
        facts[name] = torch.equal(model(pixel_values=expected["pixels"]).logits, expected["logits"])
        best = model(**AutoImageProcessor.from_pretrained(f"ada/{name}")(photo, return_tensors="pt")).logits.argmax(-1)
    found = pipeline("image-classification", model=f"ada/{name}")(photo)
    facts[name + " pipeline"] = found[0]["label"] == model.config.id2label[best.item()]
    facts[name + " labels"] = sorted(entry["label"] for entry in found)
    info = HfApi().model_info(f"ada/{name}")
    facts[name + " info"] = [info.library_name, info.pipeline_tag, info.card_data.base_model, sorted(info.tags)]
    card = ModelCard.load(f"ada/{name}")
    facts[name + " results"] = [result.metric_type for result in card.data.eval_results]
    # What the card tells a reader to run, runs.
    blocks = re.findall(r"```python\\n(.*?)```", card.content, re.S)
    for block in blocks:
        exec(block, {})
    facts[name + " blocks"] = len(blocks)
expected = load_file("timm-expected.safetensors")
with torch.no_grad():
    model = timm.create_model("hf-hub:ada/timm", pretrained=True).eval()
    facts["timm hf-hub"] = torch.equal(model(expected["pixels"]), expected["logits"])
facts["timm labels"] = sorted(model.pretrained_cfg["label_names"])
facts["hf_reprot"] = "hf_reprot" in sys.modules
print(json.dumps(facts))
"""


def test_a_stranger_loads_both_kinds_of_students(hub, run_with_hub, tmp_path):  # noqa: F811
    trained = run_with_hub(_TRAIN, cwd=tmp_path)
    assert WRITE_TOKEN not in trained.stdout + trained.stderr
    commits = json.loads(trained.stdout.splitlines()[-1])
    Image.effect_noise((40, 50), 80).convert("RGB").save(tmp_path / "photo.jpg")
    facts = json.loads(run_with_hub(BLOCK + _LOAD, cwd=tmp_path, token=None).stdout.splitlines()[-1])

    assert facts["vit"]
    assert facts["timm"]
    assert facts["timm hf-hub"]
    assert facts["vit pipeline"]
    assert facts["timm pipeline"]
    assert facts["vit labels"] == facts["timm labels"] == ["bird", "cat", "dog"]
    assert (facts["vit blocks"], facts["timm blocks"]) == (2, 3)
    assert not facts["hf_reprot"]

    library, task, base, tags = facts["vit info"]
    assert (library, task, base) == ("transformers", "image-classification", "ada/start")
    assert {"hf_reprot", "optimal-transport", "knowledge-distillation"} <= set(tags)
    library, task, base, tags = facts["timm info"]
    assert (library, task, base) == ("timm", "image-classification", None)
    assert facts["vit results"] == facts["timm results"] == ["loss", "accuracy"]

    for name in ("vit", "timm"):
        latest, first = hub.commits(f"ada/{name}")
        assert latest.id == commits[name]
        assert first.parent is None
        files = hub.files(f"ada/{name}")
        pictures = {f"images/{n}.png" for n in ("transport_plan_1", "training_curves", "teacher_and_student")}
        assert pictures | {"README.md", "transfer.json", "config.json", "model.safetensors"} <= set(files)
        assert not [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
        assert ("preprocessor_config.json" in files) == (name == "vit")
        card = files["README.md"].decode()
        assert (check_card(card).errors, check_card(card).warnings) == ([], [])
        assert str(tmp_path) not in card + files["transfer.json"].decode() + files["config.json"].decode()
        assert "a second |" in card
    assert len(hub.files("ada/timm")["model.safetensors"]) > 10_000_000
    data = front_matter(hub.files("ada/timm")["README.md"].decode())
    assert data["license"] == "mit"
    assert "base_model" not in data
    assert data["datasets"] == ["ada/pets"]
    pets = hub.commits("ada/pets", repo_type="dataset")[0].id
    result = data["model-index"][0]["results"][0]["dataset"]
    assert (result["type"], result["split"], result["revision"]) == ("ada/pets", "train", pets)
    start = hub.commits("ada/start")[0].id
    assert f"ada/start/tree/{start}" in hub.files("ada/vit")["README.md"].decode()
