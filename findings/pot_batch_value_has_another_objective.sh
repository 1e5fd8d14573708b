#!/usr/bin/env bash
# POT 0.9.7.post1: `ot.batch.solve_batch` and `ot.solve` find the same plan for the same `reg` and report another `value`: the
# first adds reg * sum P log P (entropy), the second reg * KL(P | a b). They differ by a constant of the weights, here
# reg * (log 4 + log 5), so that values of the two are not to be compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pot==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import ot
import ot.batch

print("POT", ot.__version__)
M, a, b, reg = np.random.default_rng(0).random((4, 5)), np.full(4, 1 / 4), np.full(5, 1 / 5), 0.1
one, many = ot.solve(M, a, b, reg=reg), ot.batch.solve_batch(M[None], reg=reg, a=a[None], b=b[None])
print("largest difference of the plans:", np.abs(many.plan[0] - one.plan).max())
print("value of solve:", one.value, "of solve_batch:", many.value[0], "reg (log 4 + log 5):", reg * np.log(20))
assert np.abs(many.plan[0] - one.plan).max() < 1e-5
assert abs(one.value - many.value[0] - reg * np.log(20)) < 1e-5
PYTHON
