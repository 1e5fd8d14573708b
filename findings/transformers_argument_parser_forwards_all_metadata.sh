#!/usr/bin/env bash
# transformers 5.24.0: `HfArgumentParser` hands every key of a dataclass field's metadata to `argparse.add_argument`. The
# standard library calls metadata an extension mechanism for third parties; a key of one's own beside "help" makes a
# settings class unusable on a command line. A `str` subclass as the help text can carry such facts instead.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
from dataclasses import dataclass, field

import transformers
from transformers import HfArgumentParser

print("transformers", transformers.__version__)


@dataclass
class Plain:
    rate: float = field(default=0.1, metadata={"help": "A rate."})


@dataclass
class WithUnit:
    rate: float = field(default=0.1, metadata={"help": "A rate.", "unit": "1/s"})


print("help alone:", HfArgumentParser(Plain).parse_args_into_dataclasses(["--rate", "2"]))
try:
    HfArgumentParser(WithUnit)
    raise SystemExit("a key of one's own is accepted now")
except TypeError as error:
    print("and a unit: TypeError:", error)
    assert "unit" in str(error)
PYTHON
