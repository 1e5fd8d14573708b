"""A cache goes to the Hub and comes back, at the commit that was asked for."""

import json

from tests.hub_server.card import front_matter
from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

_SCRIPT = """
import json
from pathlib import Path
from datasets import Dataset, DatasetInfo
from hf_reprot import Teacher
from hf_reprot.cache import CacheError, FeatureCache
from hf_reprot.hub.errors import HubError
from tests.cache.samples import build, cached_trainer
from tests.toy_models import Images, resnet

facts = {}

def attempt(name, job):
    try:
        facts[name] = job()
    except (HubError, CacheError) as error:
        facts[name] = f"{type(error).__name__}: {error}"

def teacher(seed):
    return Teacher(resnet(seed=seed), name="org/teacher", revision="a" * 40, license="cc-by-nc-4.0")

def rows(count):
    images = Images()
    info = DatasetInfo(dataset_name="noise", license="cc-by-4.0")
    found = [{k: v.tolist() for k, v in images[i].items()} for i in range(count)]
    return Dataset.from_list(found, info=info).with_format("torch")

first = build(Path("first"), teacher(1), rows(32))
attempt("pushed", lambda: first.push_to_hub("ada/features"))
second = build(Path("second"), teacher(1), rows(24))
attempt("again", lambda: second.push_to_hub("ada/features"))
attempt("branch", lambda: first.push_to_hub("ada/features", revision="other"))
attempt("open", lambda: first.push_to_hub("ada/open", private=False))
attempt("not private", lambda: first.push_to_hub("ada/open"))
attempt("not ours", lambda: first.push_to_hub("bob/features"))
latest = FeatureCache.from_hub("ada/features")
facts["digests"] = [first.digest, second.digest, latest.digest, FeatureCache.open("ada/features@other").digest]
old = "ada/features@" + facts["pushed"]
facts["old"] = [FeatureCache.open(old).digest, FeatureCache.open(old).revision, FeatureCache.open(old).title]
attempt("no revision", lambda: FeatureCache.open("ada/features@nothing"))
attempt("no repository", lambda: FeatureCache.open("ada/nothing"))
trainer = cached_trainer(Path("student"), old, teacher="org/teacher@" + "a" * 40)
facts["loss"] = trainer.train().training_loss
trainer.create_model_card()
facts["student"] = Path("student/README.md").read_text()
attempt("other revision", lambda: cached_trainer(Path("student"), old, teacher="org/teacher@" + "b" * 40))
shard = sorted(Path("first").glob("*.safetensors"))[0]
content = bytearray(shard.read_bytes())
content[-1] ^= 1
shard.write_bytes(content)
attempt("damaged", lambda: FeatureCache(Path("first"), verify=False).push_to_hub("ada/features"))
print(json.dumps(facts))
"""


def test_there_and_back(hub, run_with_hub):  # noqa: F811
    facts = json.loads(run_with_hub(_SCRIPT).stdout.splitlines()[-1])
    first, second, latest, other = facts["digests"]
    assert (latest, other) == (second, first)
    assert facts["old"] == [first, facts["pushed"], "ada/features"]
    commits = [commit.id for commit in hub.commits("ada/features", repo_type="dataset")]
    assert commits[:2] == [facts["again"], facts["pushed"]]
    assert hub.repo("ada/features", repo_type="dataset").private
    assert not hub.repo("ada/open", repo_type="dataset").private
    assert facts["not private"].startswith("HubError: ada/open exists and is public")
    assert facts["not ours"].startswith("HubError: the token has no right to write to bob/features")
    assert facts["no revision"].startswith("CacheError: the feature cache ada/features@nothing cannot be had")
    assert facts["no repository"].startswith("CacheError: the feature cache ada/nothing cannot be had")
    assert "and the run asks for " + "b" * 40 in facts["other revision"]
    assert "is damaged: its SHA-256" in facts["damaged"]
    assert f"SHA-256 {first[:16]}" in facts["student"]
    assert facts["loss"] > 0
    files = hub.files("ada/features", repo_type="dataset")
    assert sum(name.endswith(".safetensors") for name in files) == 3  # the fourth of the first push is gone
    readme = files["README.md"].decode()
    card = front_matter(readme)
    assert card["license"] == "cc-by-4.0"
    assert "feature-cache" in card["tags"]
    for said in (
        second,
        "cc-by-nc-4.0",
        "noise",
        "org/teacher@aaaaaaaaaaaa",
        "share them only where you may",
        "24 rows",
    ):
        assert said in readme
    assert str(hub.directory) not in readme + files["manifest.json"].decode()
