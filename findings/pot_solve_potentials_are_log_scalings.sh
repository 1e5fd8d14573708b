#!/usr/bin/env bash
# POT 0.9.7.post1: `ot.solve(..., reg)`.potentials are the logarithms of Sinkhorn's scalings, in no unit of the cost: the plan
# is exp(f + g - M / reg), and <f, a> + <g, b> is not the dual value. In other solvers (and in `ot.solve` without `reg`)
# potentials have the unit of the cost, plan = a b exp((f + g - M) / reg).
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
M, a, b, reg = rng.random((4, 5)), np.full(4, 1 / 4), np.full(5, 1 / 5), 0.1
result = ot.solve(M, a, b, reg=reg)
f, g = result.potentials
as_logs = np.exp(f[:, None] + g - M / reg)
as_costs = a[:, None] * b * np.exp((f[:, None] + g - M) / reg)
print("error of the plan, potentials as log scalings:", np.abs(as_logs - result.plan).max())
print("error of the plan, potentials in units of the cost:", np.abs(as_costs - result.plan).max())
print("<f, a> + <g, b>:", f @ a + g @ b, "value:", result.value)
assert np.abs(as_logs - result.plan).max() < 1e-12
assert np.abs(as_costs - result.plan).max() > 1
assert abs(f @ a + g @ b - result.value) > 0.1
exact = ot.solve(M, a, b)
assert abs(exact.potentials[0] @ a + exact.potentials[1] @ b - exact.value) < 1e-9
PYTHON
