import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.spectrum import confident_subset


def test_the_subset_is_where_prediction_and_label_agree():
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 2], [0, 3, 1], [5, 0, 0], [1, 0, 0]])
    found = confident_subset(nn.Identity(), logits, torch.tensor([0, 1, 1, 0, 0]), batch_size=2)
    assert found.indices.tolist() == [0, 2, 3, 4]
    # Counts 3, 1, 0: their mean over the two classes there are is 2.
    assert_close(found.class_weights, torch.tensor([2 / 3, 2.0, 0.0]))


def test_weighted_classes_count_alike():
    y = torch.tensor([0, 0, 0, 1])
    found = confident_subset(nn.Identity(), nn.functional.one_hot(y, 2).float(), y)
    assert float(found.class_weights[y].sum()) == pytest.approx(len(y))
    assert_close(found.class_weights[0] * 3, found.class_weights[1])


def test_views_are_averaged_as_probabilities():
    logits, y = torch.tensor([[0.0, 1.0]]), torch.tensor([0])
    assert confident_subset(nn.Identity(), logits, y).indices.tolist() == []
    turned = [lambda x: x, lambda x: 9 * x.flip(1)]
    assert confident_subset(nn.Identity(), logits, y, views=turned).indices.tolist() == [0]
    # Logits would average to a lead of 8 for class 1; probabilities to 0.5 + 0.5 * 0.27 for class 0.
    strong = [lambda x: 8 * x, lambda x: 1.5 * x.flip(1), lambda x: 1.5 * x.flip(1)]
    assert confident_subset(nn.Identity(), logits, y, views=strong).indices.tolist() == [0]


def test_nobody_agreed_is_an_answer():
    found = confident_subset(nn.Identity(), torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert found.indices.shape == (0,)
    assert found.class_weights.tolist() == [0.0, 0.0]


def test_modes_statistics_and_gradients_are_left_alone():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    net[1].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    found = confident_subset(net, torch.randn(8, 3), torch.zeros(8, dtype=torch.int64))
    assert [module.training for module in net] == [True, False, True]
    assert_close(net.state_dict(), before)
    assert not found.class_weights.requires_grad


def test_nonsense_is_refused():
    x, y = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="as many, at least one; got 2 and 1"):
        confident_subset(nn.Identity(), x, y[:1])
    with pytest.raises(ValueError, match="as many, at least one; got 0 and 0"):
        confident_subset(nn.Identity(), x[:0], y[:0])
    with pytest.raises(ValueError, match="batch_size"):
        confident_subset(nn.Identity(), x, y, batch_size=0)
    with pytest.raises(ValueError, match="0 to 2, got 0 to 7"):
        confident_subset(nn.Identity(), x, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"\(batch, classes\), got shape \(2, 3, 1\)"):
        confident_subset(nn.Unflatten(1, (3, 1)), x, y)
