#!/usr/bin/env bash
# POT 0.9.7.post1: `ot.emd` warns of an infeasible problem, returns an empty plan and the cost 0.0, where costs lie below
# about -1e6, and where +inf forbids some matches although the diagonal is free. Adding a constant to all costs changes no
# optimal plan; a user who shifts costs, or who forbids matches by inf, gets zeros.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pot==0.9.7.post1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import ot

print("POT", ot.__version__)
weights, costs = np.full(20, 1 / 20), np.random.default_rng(0).random((20, 20))
plan, log = ot.emd(weights, weights, costs, log=True)
shifted, log_shifted = ot.emd(weights, weights, costs - 1e7, log=True)
banned = np.where(np.triu(np.ones_like(costs), 2) > 0, np.inf, costs)  # the diagonal and all below it stay free
forbidden, log_forbidden = ot.emd(weights, weights, banned, log=True)
print("mass of the plan: costs", plan.sum().round(6), "| costs - 1e7", shifted.sum(), "| some costs inf", forbidden.sum())
print("cost:", round(log["cost"], 4), "|", log_shifted["cost"], "|", log_forbidden["cost"])
assert abs(plan.sum() - 1) < 1e-9
assert shifted.sum() == forbidden.sum() == 0
assert log_shifted["cost"] == log_forbidden["cost"] == 0
PYTHON
