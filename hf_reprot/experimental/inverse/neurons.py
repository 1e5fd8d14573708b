"""Inverse transport between samples, read as a cost between neurons."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ot.cost import varies
from .costs import BilinearCost, fix_gauge
from .fit import InverseTransport


def learn_neuron_cost(
    student: Tensor, teacher: Tensor, *, regularisation: float = 1.0, batch_size: int = 512
) -> InverseTransport:
    """Learns a cost between the neurons of two layers from their activations on the same samples.

    The bilinear cost between a student's sample s and a teacher's t, c(s, t) = -sum_ij A_ij s_i t_j, for which each
    sample is sent to its own one (`InverseTransport` on pairs, neurons standardised), has one number for each pair of
    neurons: -A_ij is a cost between neuron i and neuron j. Where a correlation says how alike two neurons are, A_ij
    says how much they help to tell samples apart beside all the other neurons: redundant neurons share what they know.
    Under a strong penalty A is the matrix of correlations, divided by it (the gradient at A = 0).

    Args:
        student: S (n, d_s), any float dtype.
        teacher: T (n, d_t), row k of the same sample as row k of S.
        regularisation: Weight of |A|^2 / 2; above 0 wherever n is not far above d_s d_t.
        batch_size: Samples that are told apart at a time, as in `InverseTransport`.

    Returns:
        A fitted bilinear `InverseTransport` of standardised neurons: its `ground.A` is (d_s, d_t), 0 for neurons that
        are constant. `neuron_cost_of` reads it.

    Example:
        >>> import torch
        >>> from hf_reprot.ot import solve
        >>> from hf_reprot.experimental.inverse import learn_neuron_cost, neuron_cost_of
        >>> teacher = torch.randn(100, 5)
        >>> student = teacher[:, [2, 0, 4, 1, 3]] + 0.1 * torch.randn(100, 5)
        >>> cost = neuron_cost_of(learn_neuron_cost(student, teacher))
        >>> solve(cost, method="exact").plan.argmax(1)
        tensor([2, 0, 4, 1, 3])
    """
    inverse = InverseTransport("bilinear", regularisation=regularisation, batch_size=batch_size)
    return inverse.fit(_standardized(student), _standardized(teacher))


def neuron_cost_of(inverse: InverseTransport) -> Tensor:
    """The cost -A (d_s, d_t) between neurons of a fitted bilinear cost between samples, rows and columns of mean 0.

    Raises:
        ValueError: it is of another kind, or was not fitted.
    """
    if not isinstance(inverse.ground, BilinearCost):
        state = "was not fitted" if inverse.kind == "bilinear" else f"is {inverse.kind}"
        raise ValueError(f"neurons are compared by a fitted bilinear cost, and this one {state}")
    return fix_gauge(-inverse.ground.A.detach())


def _standardized(neurons: Tensor) -> Tensor:
    """Neurons (n, d) in float64, of mean 0 and variance 1; constant ones are 0."""
    neurons = neurons.detach().double()
    mean, variance = neurons.mean(0), neurons.var(0, correction=0)
    alive = varies(mean, variance)
    return torch.where(alive, (neurons - mean) * torch.where(alive, variance, 1.0).rsqrt(), 0.0)
