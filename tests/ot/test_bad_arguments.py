"""`solve` raises on shapes, dtypes and settings, before any work."""

import pytest
import torch

from hf_reprot.ot import solve


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"M": torch.rand(3)}, ValueError, r"\(\.\.\., m, n\).*\(3,\)"),
        ({"M": torch.rand(0, 3)}, ValueError, r"at least 1.*\(0, 3\)"),
        ({"M": torch.ones(3, 3, dtype=torch.int)}, TypeError, "int32"),
        ({"M": [[1.0]]}, TypeError, "list"),
        ({"a": torch.rand(4)}, ValueError, r"a must have shape \(\.\.\., 3\).*\(4,\)"),
        ({"b": torch.rand(3)}, ValueError, r"b must have shape \(\.\.\., 5\)"),
        ({"a": torch.rand(2, 3)}, ValueError, "broadcast"),
        ({"a": torch.ones(3, dtype=torch.long)}, TypeError, "a must be a float tensor"),
        ({"method": "sinkorn"}, ValueError, "'sinkorn'.*'exact'.*Did you mean 'sinkhorn'"),
        ({"method": "identity"}, ValueError, "equal widths, got 3 and 5"),
        ({"relative_epsilon": 0.0}, ValueError, "relative_epsilon.*0.0"),
        ({"epsilon": float("nan")}, ValueError, "epsilon"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"max_iterations": 0}, ValueError, "max_iterations"),
        ({"init": torch.zeros(4)}, ValueError, r"init.*\(5,\).*\(4,\)"),
    ],
)
def test_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        solve(**{"M": torch.rand(3, 5), **arguments})
