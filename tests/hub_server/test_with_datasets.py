"""The data set library pushes a data set and loads it back from the local Hub."""

import json

from tests.hub_server.fixtures import hub, run_with_hub  # noqa: F401

_SCRIPT = """
import json
import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value, load_dataset
from huggingface_hub import DatasetCard
import PIL.Image

features = Features(label=Value("int64"), image=Image())

def made(n):
    images = [PIL.Image.fromarray(np.full((8, 8), k, dtype=np.uint8)) for k in range(n)]
    return Dataset.from_dict({"label": list(range(n)), "image": images}, features=features)

DatasetDict(train=made(6), test=made(3)).push_to_hub("ada/shapes", private=True)
made(4).push_to_hub("ada/shapes", config_name="other", split="train")
loaded = load_dataset("ada/shapes")
streamed = list(load_dataset("ada/shapes", split="test", streaming=True))
print(json.dumps({
    "splits": {name: len(split) for name, split in loaded.items()},
    "labels": loaded["train"]["label"][:],
    "pixel": np.asarray(loaded["train"][5]["image"]).tolist()[0][0],
    "streamed": [row["label"] for row in streamed],
    "other": len(load_dataset("ada/shapes", "other", split="train")),
    "card": sorted(config["config_name"] for config in DatasetCard.load("ada/shapes").data.configs),
}))
"""


def test_a_pushed_data_set_loads_again(hub, run_with_hub):  # noqa: F811
    facts = json.loads(run_with_hub(_SCRIPT).stdout.splitlines()[-1])
    assert facts == {
        "splits": {"train": 6, "test": 3},
        "labels": [0, 1, 2, 3, 4, 5],
        "pixel": 5,
        "streamed": [0, 1, 2],
        "other": 4,
        "card": ["default", "other"],
    }
    assert hub.repo("ada/shapes", repo_type="dataset").private
    assert "data/train-00000-of-00001.parquet" in hub.files("ada/shapes", repo_type="dataset")
    assert any(record.path.startswith("/datasets/ada/shapes/resolve/") for record in hub.requests)
