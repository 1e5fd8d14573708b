"""A transformers model is saved to the local Hub and loaded from it."""

import json

from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

_SCRIPT = """
import json, torch
from transformers import AutoConfig, AutoModelForImageClassification, ViTConfig, ViTForImageClassification

config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                   patch_size=4, num_labels=3)
model = ViTForImageClassification(config).eval()
model.save_pretrained("student", push_to_hub=True, repo_id="ada/tiny-vit", commit_message="tiny", private=True)
loaded = AutoModelForImageClassification.from_pretrained("ada/tiny-vit").eval()
pixels = torch.rand(2, 3, 8, 8)
with torch.no_grad():
    equal = torch.equal(model(pixels).logits, loaded(pixels).logits)
try:
    AutoConfig.from_pretrained("ada/no-such-model")
    error = ""
except OSError as caught:
    error = str(caught)
print(json.dumps({"equal": equal, "error": error}))
"""


def test_a_pushed_model_loads_with_the_same_outputs(hub, run_with_hub):  # noqa: F811
    facts = json.loads(run_with_hub(_SCRIPT).stdout.splitlines()[-1])
    assert facts["equal"]
    assert "is not a valid model identifier" in facts["error"] or "not a local folder" in facts["error"]
    assert {"config.json", "model.safetensors"} <= set(hub.files("ada/tiny-vit"))
    assert hub.commits("ada/tiny-vit")[0].title == "tiny"
    assert hub.repo("ada/tiny-vit").private
