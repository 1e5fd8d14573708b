import torch

from benchmarks.scale import Problem, flops, main, measure


def test_measures_a_problem():
    problem = Problem(16, 6, 9, pairs=2)
    found = measure(problem, torch.device("cpu"), repeats=1)
    assert found["ms"] > 0
    assert found["sweeps"] >= 1
    assert found["Gflop"] == flops(problem, found["sweeps"]) / 1e9 == 2 * 54 * (64 + 4 * found["sweeps"]) / 1e9
    assert found["MB sent"] == found["exchange ms"] == 0  # one process


def test_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["measure_scale", "--use_cpu", "--repeats", "1", "--problems", "1"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| 32 | 512 | 512 | 1 |")
    assert lines[-1].count("|") == lines[-3].count("|")
