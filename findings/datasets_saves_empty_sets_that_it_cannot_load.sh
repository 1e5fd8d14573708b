#!/usr/bin/env bash
# datasets 5.2.0: a data set that was made without rows is saved by `save_to_disk` without complaint, in no shard at all, and
# `load_from_disk` of that folder raises IndexError. One that a filter emptied keeps a shard and loads.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import tempfile

import datasets
from datasets import Dataset, Features, Value, load_from_disk

print("datasets", datasets.__version__)
folder = tempfile.mkdtemp()
full = Dataset.from_dict({"label": [0, 1]}, features=Features({"label": Value("int64")}))
full.filter(lambda row: row["label"] > 1).save_to_disk(folder + "/filtered")
Dataset.from_dict({"label": []}, features=full.features).save_to_disk(folder + "/empty")
for name in ("filtered", "empty"):
    try:
        print(name, "rows after loading:", len(load_from_disk(f"{folder}/{name}")))
        assert name != "empty"
    except IndexError as error:
        print(name, "IndexError:", error)
        assert name == "empty"
PYTHON
