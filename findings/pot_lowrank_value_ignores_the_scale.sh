#!/usr/bin/env bash
# POT 0.9.7.post1: `ot.solve_sample(method="lowrank")` reports a `value_linear` that does not follow the scale of the data.
# Points ten times as far apart have a squared cost 100 times as large; the full solver says so, the low-rank one stays
# near where it was, for it rescales the cost and does not undo it in the value.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pot==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import ot

print("POT", ot.__version__)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3)) + 1
found = {}
for scale in (1, 10):
    low = ot.solve_sample(scale * x, scale * y, method="lowrank", reg=0.1 * scale**2, rank=10).value_linear
    full = ot.solve_sample(scale * x, scale * y, reg=0.1 * scale**2).value_linear
    found[scale] = low, full
    print(f"scale {scale}: low rank {low:.4f}, full {full:.4f}")
assert abs(found[10][1] / found[1][1] - 100) < 1e-3
assert found[10][0] / found[1][0] < 2
PYTHON
