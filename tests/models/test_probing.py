"""Nearest neighbours and a linear probe on features whose answers are known."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from hf_reprot.models.probing import default_neighbours, measure_features, nearest


def _rays(angles):
    angles = torch.tensor(angles)
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_neighbours_are_those_at_the_smallest_angle_whatever_the_length():
    features = _rays([0.0, 0.1, 0.3, 2.0]) * torch.tensor([[1.0], [100.0], [0.01], [5.0]])
    similar, rows = nearest(features, 2)
    assert rows.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert similar[0].tolist() == pytest.approx([math.cos(0.1), math.cos(0.3)], abs=1e-5)


def test_the_measures_of_a_drawn_case():
    # 0 and 1 are of class 7 and next to each other; 2 is, too, and lies among class 4.
    features, labels = _rays([0.0, 0.1, 1.0, 1.1, 1.25]), torch.tensor([7, 7, 7, 4, 4])
    found = measure_features(features, labels, k=1)
    assert (found.samples, found.neighbours) == (5, 1)
    assert found.knn_accuracy == pytest.approx(3 / 5)  # 2 -> 3 (wrong), 3 -> 2 (wrong), 4 -> 3
    assert found.neighbour_purity == pytest.approx(3 / 5)
    two = measure_features(features, labels, k=2)
    assert two.neighbour_purity == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)


def test_near_neighbours_outvote_far_ones():
    features, labels = _rays([0.0, 0.01, 1.0, 1.05]), torch.tensor([0, 0, 1, 1])
    assert measure_features(features, labels, k=3).knn_accuracy == 1  # by heads alone, 2 of 3 neighbours are others


def test_as_scikit_learn_counts_neighbours():
    draw = np.random.default_rng(0)
    labels = np.arange(90) % 3
    features = draw.normal(size=(3, 8))[labels] + draw.normal(size=(90, 8))
    right = 0
    weight = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
    for i in range(90):
        rest = np.delete(np.arange(90), i)
        knn = KNeighborsClassifier(15, metric="cosine", weights=weight).fit(features[rest], labels[rest])
        right += knn.predict(features[i : i + 1])[0] == labels[i]
    found = measure_features(torch.from_numpy(features), torch.from_numpy(labels))
    assert found.neighbours == default_neighbours(90, 3) == 15
    assert found.knn_accuracy == pytest.approx(right / 90)
    assert 0.5 < found.probe_accuracy <= 1


def test_the_probe_is_asked_about_samples_that_it_was_not_fitted_to():
    draw = np.random.default_rng(0)
    noise = torch.from_numpy(draw.normal(size=(80, 200)))  # a fit would be right about all of its own samples
    assert measure_features(noise, torch.arange(80) % 2).probe_accuracy < 0.75
    labels = torch.arange(80) % 2
    told = torch.cat([labels[:, None] * 4.0, noise[:, :3]], 1)
    assert measure_features(told, labels).probe_accuracy == 1


def test_samples_without_a_label_take_no_part_and_labels_may_be_any_numbers():
    features, labels = _rays([0.0, 0.1, 0.05, 1.0, 1.1]), torch.tensor([50, 50, -100, 9, 9])
    assert measure_features(features, labels, k=1).knn_accuracy == 1
    assert measure_features(features, labels, k=1).samples == 4
    assert measure_features(features, torch.tensor([-1, 3, 3, 3, 3])) is None
    broken = features.clone()
    broken[1] = torch.nan
    assert measure_features(broken, labels, k=1).knn_accuracy < 1


@pytest.mark.parametrize(
    ("labels", "k", "message"),
    [
        (torch.zeros(5), None, "one whole number a sample, got torch.float32"),
        (torch.zeros(5, 2, dtype=torch.long), None, r"of shape \(5, 2\) for 5 samples"),
        (torch.arange(5) % 2, 5, "k must be from 1 to 4"),
    ],
)
def test_what_cannot_be_measured(labels, k, message):
    with pytest.raises(ValueError, match=message):
        measure_features(_rays([0.0, 0.1, 0.2, 0.3, 0.4]), labels, k)
