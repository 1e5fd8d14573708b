"""Teachers come from the Hub at a commit that is written down."""

import json

from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

_SCRIPT = """
import json, torch
from transformers import ViTConfig, ViTForImageClassification
from hf_reprot.models.teacher import Teacher

config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8,
                   patch_size=4, num_labels=3)
first, second = ViTForImageClassification(config), ViTForImageClassification(config)
for model in (first, second):
    model.save_pretrained("teacher", push_to_hub=True, repo_id="ada/tiny-vit", private=True)
newest = Teacher.load("ada/tiny-vit")
facts = {"name": newest.name, "revision": newest.revision}
facts["newest"] = torch.equal(newest.model.classifier.weight, second.classifier.weight)
from huggingface_hub import HfApi
commits = [c.commit_id for c in HfApi().list_repo_commits("ada/tiny-vit")]
older = Teacher.load("ada/tiny-vit@" + commits[1])
facts["older"] = torch.equal(older.model.classifier.weight, first.classifier.weight)
facts["older_revision"] = older.revision
for source in ("ada/none", "ada/tiny-vit@nowhere"):
    try:
        Teacher.load(source)
    except ValueError as error:
        facts[source] = str(error)
print(json.dumps(facts))
"""


def test_hub_teachers(hub, run_with_hub):  # noqa: F811
    facts = json.loads(run_with_hub(_SCRIPT).stdout.splitlines()[-1])
    commits = [commit.id for commit in hub.commits("ada/tiny-vit")]
    assert facts["name"] == "ada/tiny-vit"
    assert facts["newest"]
    assert facts["older"]
    assert facts["revision"] == commits[0]
    assert facts["older_revision"] == commits[1]
    assert "'ada/none' is neither a folder here nor a model on the Hub" in facts["ada/none"]
    assert "'ada/tiny-vit' has no revision 'nowhere'" in facts["ada/tiny-vit@nowhere"]
