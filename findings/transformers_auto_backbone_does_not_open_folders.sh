#!/usr/bin/env bash
# transformers 5.24.0: `AutoBackbone.from_pretrained` does not open the folder that a backbone's own `save_pretrained` wrote:
# it asks the Hub for a repository of that name first. The family's class and `AutoModel` open the same folder. Backbones
# that were trained on one's own machine have to be pushed before `AutoBackbone` takes them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1 transformers==5.24.0
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import os

import transformers
from transformers import AutoBackbone, AutoModel, Dinov2Backbone, Dinov2Config

print("transformers", transformers.__version__)
config = Dinov2Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
folder = os.path.abspath("saved/by/me")
Dinov2Backbone(config).save_pretrained(folder)
print("Dinov2Backbone:", type(Dinov2Backbone.from_pretrained(folder)).__name__)
print("AutoModel:", type(AutoModel.from_pretrained(folder)).__name__)
try:
    AutoBackbone.from_pretrained(folder)
except Exception as error:
    print("AutoBackbone:", type(error).__name__, "-", str(error).replace(folder, "FOLDER")[:110])
else:
    raise SystemExit("AutoBackbone opens folders now")
PYTHON
