"""Batch spectral shrinkage: the weakest directions of the features are let go (Chen et al., NeurIPS 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common import LossOutput


class BatchSpectralShrinkage(nn.Module):
    """Sum of the squares of the k smallest singular values of the batch's feature matrix.

    loss = sum over the k smallest singular values sigma of F (n, d) of sigma^2

    The directions that the singular vectors of small value span transfer worst; the penalty empties them.

    Args:
        k: How many singular values; of a smaller matrix, all.

    Inputs:
        | tensor | shape | gradient |
        |---|---|---|
        | features | (n, d), any float dtype | yes |

    Requirements: none; there is no teacher. A batch of one has one singular value, its length, which is then shrunk.

    Returns: `LossOutput` with `loss` and `logs["smallest"]`, the smallest singular value.

    Relations: adds to any regulariser that holds the student near its start (`L2SP`, `DELTA`, transport): it lets go of
    what should not be kept.

    Example:
        >>> import torch
        >>> from hf_reprot.losses.baselines import BatchSpectralShrinkage
        >>> BatchSpectralShrinkage(k=2)(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).loss.item()
        5.0

    References: Chen, Wang, Fu, Long, Wang: "Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage
    for Safe Transfer Learning", NeurIPS 2019.
    """

    citation = """@inproceedings{chen2019catastrophic,
  title={Catastrophic Forgetting Meets Negative Transfer: Batch Spectral Shrinkage for Safe Transfer Learning},
  author={Chen, Xinyang and Wang, Sinan and Fu, Bo and Long, Mingsheng and Wang, Jianmin},
  booktitle={NeurIPS},
  year={2019}
}"""

    def __init__(self, k: int = 1):
        super().__init__()
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = int(k)

    def forward(self, features: Tensor) -> LossOutput:
        if features.ndim != 2:
            raise ValueError(f"features must have shape (samples, neurons), got {tuple(features.shape)}")
        with torch.autocast(device_type=features.device.type, enabled=False):
            features = features.to(torch.promote_types(features.dtype, torch.float32))
            # The decomposition raises on what is not finite; the loss says it by its value instead.
            finite = torch.isfinite(features).all()
            values = torch.linalg.svdvals(torch.where(finite, features, torch.zeros_like(features)))
            weakest = values[-self.k :]
            loss = torch.where(finite, weakest.square().sum(), torch.nan)
        return LossOutput(loss, logs={"smallest": values[-1].detach()})

    def extra_repr(self) -> str:
        return f"k={self.k}"
