"""The tests marked `cuda`, each a row as it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from .device import ROOT
from .results import Results
from .sizes import Sizes
from .time_box import Box

_LINE = re.compile(r"^tests/cuda/(\S+?\.py)::(\S.*?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL)\b")
_RESULT = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "passed"}


def measure(results: Results, sizes: Sizes, box: Box) -> None:
    """Runs them in a process of their own: what hangs there, or breaks the device, ends with it."""
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-v", "-m", "cuda", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    environment["HF_REPROT_REHEARSE"] = "1" if sizes.device == "cpu" else ""
    tests = subprocess.Popen(
        [*command, "--tb=short", "-rfE", "tests/cuda", *sizes.tests],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    said: list[str] = []
    try:
        assert tests.stdout is not None
        for line in tests.stdout:
            said.append(line.rstrip())
            found = _LINE.match(line)
            if found:
                result = _RESULT.get(found[3], "failed")
                results.row("checks", "Tests marked `cuda`", file=found[1], test=found[2], result=result)
        tests.wait()
    finally:
        tests.kill()
        tests.wait()
    if tests.returncode != 0:
        results.note("checks", "\n".join(said[-60:]))
        raise RuntimeError(f"pytest ended with {tests.returncode}")
