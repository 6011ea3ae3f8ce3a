"""Top-k errors."""

import pytest
import torch

from sppnet.metrics import count_wrong, top_k_wrong


def test_top_k_looks_for_the_true_class_among_the_k_highest_scores():
    scores = torch.tensor([[0.1, 0.5, 0.4], [0.7, 0.2, 0.1]])
    labels = torch.tensor([2, 2])
    assert top_k_wrong(scores, labels, 1).tolist() == [True, True]
    assert top_k_wrong(scores, labels, 2).tolist() == [False, True]
    assert top_k_wrong(scores, labels, 3).tolist() == [False, False]


def test_more_than_all_classes_are_never_wrong():
    assert not top_k_wrong(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).any()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_constant_scores_are_wrong_and_not_lucky(value):
    assert top_k_wrong(torch.full((6, 10), value), torch.arange(6), 5).all()


def test_without_ties_it_equals_torchs_topk():
    scores, labels = torch.rand(200, 20), torch.randint(20, (200,))
    for k in (1, 5):
        reference = (scores.topk(k).indices != labels[:, None]).all(dim=1)
        assert torch.equal(top_k_wrong(scores, labels, k), reference)


def test_counts_are_top1_top5_and_images():
    scores = torch.arange(10.0, 0.0, -1.0).repeat(7, 1)  # class 0 has the highest score, class 9 the lowest
    labels = torch.tensor([0, 1, 2, 3, 4, 5, 9])
    assert count_wrong(scores, labels).tolist() == [6, 2, 7]
