"""The benchmarks run, on problems of toy size, and say what they found."""

import argparse
import re

import pytest
import torch
from rich.console import Console

from benchmarks import solver_curves
from benchmarks import solvers as benchmark_solvers
from benchmarks import training as benchmark_training
from benchmarks.solver_peers import solvers, with_activations
from benchmarks.solver_problems import Problem, synthetic_pairs
from benchmarks.solver_roofline import Peak, kernel_work


@pytest.fixture
def problem():
    return Problem("2x12x17", synthetic_pairs("2x12x17", 64), 0.05, 1e-3)


@pytest.mark.filterwarnings("ignore")
def test_every_solver_reaches_the_tolerance_and_the_same_cost(problem):
    costs = {}
    for name, prepare in solvers("cpu", ablation=True, activations=True).items():
        if name == "geomloss":  # has no tolerance: what it reached stands in the table
            continue
        plan = torch.as_tensor(prepare(problem)())
        assert problem.error(plan) <= 1.1e-3, name
        costs[name] = float((plan * problem.costs).sum())
    exact = costs.pop("POT emd2 (exact)")
    for name, cost in costs.items():
        assert cost == pytest.approx(costs["hf_reprot"], rel=5e-3), name
        assert cost > exact


def test_from_activations_to_their_gradient(problem):
    run = with_activations(problem)
    assert torch.allclose(run(), solvers("cpu")["hf_reprot"](problem)(), atol=1e-6)


def test_the_table_of_solvers(capsys, tmp_path):
    path = tmp_path / "times.png"
    benchmark_solvers.main(["--shapes", "12x17", "--samples", "64", "--repeats", "2", "--plot", str(path)])
    printed = capsys.readouterr().out
    assert "POT" in printed
    assert re.search(r"sweeps: \[\d+\]", printed)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("option", ["--cold", "--flush-subnormals"])
def test_other_conditions_for_all_solvers(capsys, tmp_path, option):
    supported = torch.set_flush_denormal(False)
    small = ["--shapes", "12x17", "--samples", "64", "--repeats", "1", "--plot", str(tmp_path / "times.png")]
    try:
        benchmark_solvers.main([*small, option])
        flushed = float(torch.tensor(1e-30) * torch.tensor(1e-10)) == 0
    finally:
        torch.set_flush_denormal(False)
    assert flushed == (option == "--flush-subnormals" and supported)
    assert "hf_reprot" in capsys.readouterr().out


def test_a_turn_counts_without_its_first_run():
    taken = []
    options = argparse.Namespace(device="cpu", clock="wall", repeats=2, seconds=9, cold=False)
    assert len(benchmark_solvers.measure({"a": lambda: taken.append(1)}, options)["a"]) == 4
    assert len(taken) == 6
    options.cold = True
    assert len(benchmark_solvers.measure({"a": lambda: taken.append(1)}, options)["a"]) == 2


def test_curves(tmp_path):
    options = argparse.Namespace(device="cpu", relative_epsilon=0.05, tolerance=1e-3, seconds=1.0)
    curves = {
        "neurons a side": ([8, 12], lambda width: (f"{width}x{width}", 64)),
        "samples, 8 x 8": ([16, 32], lambda samples: ("8x8", samples)),
    }

    def measure(runs):
        for run in runs.values():
            run()
        return {name: 2.0 if name == "POT sinkhorn" else 0.1 for name in runs}

    times = solver_curves.measure_curves(options, measure, Console(quiet=True), curves)
    assert list(times) == list(curves)
    assert times["neurons a side"]["hf_reprot"] == {8: 0.1, 12: 0.1}
    assert times["neurons a side"]["POT sinkhorn"] == {8: 2.0}  # too slow to be asked again
    assert set(times["samples, 8 x 8"]) == {"solution alone", "from activations and back"}
    solver_curves.plot_curves(times, tmp_path / "curves.png", "wall")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_roofline_of_a_kernel():
    peak = Peak(bandwidth=4e12, flops=5e13)
    # 30 sweeps over 12 x 384 x 384 float32 costs, read once each: 212 MB
    size, flops = kernel_work("solve_pairs", 12, 384, 384, 30, 1)
    assert size == 4 * 12 * 384 * 384 * 30
    assert peak.share(size, flops, 2 * size / 4e12) == pytest.approx(0.5)
    assert peak.share(0, 5e13, 4) == pytest.approx(0.25)
    # sweeps of pairs that are done cost nothing
    assert kernel_work("sweep_rows", 1, 2048, 2048, 26, 40) == kernel_work("sweep_rows", 1, 2048, 2048, 26, 26)
    assert kernel_work("ampere_sgemm", 1, 2, 3, 4, 5) is None


def test_the_share_of_a_training_step(capsys):
    settings = "--teacher vit_tiny_patch16_224 --student resnet10t --image 32 --batch 4 --steps 1"
    benchmark_training.main([*settings.split(), "--cases", "last layer"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "last" in printed
    assert re.search(r"\d+\.\d%", printed)
