import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.spectrum import confident_subset

LOGITS = torch.eye(4)[[0, 0, 1, 2, 2, 2]] * 3


def test_samples_whose_label_is_the_prediction_and_their_weights():
    labels = torch.tensor([0, 0, 1, 2, 1, 2])
    indices, weights = confident_subset(nn.Identity(), LOGITS, labels, batch_size=4)
    assert indices.tolist() == [0, 1, 2, 3, 5]
    assert_close(weights, 1.25 / torch.tensor([2.0, 1.0, 2.0, torch.inf]))  # class 3 has none: weight 0


def test_weights_give_every_class_the_same_say():
    labels = LOGITS.argmax(1)
    _, weights = confident_subset(nn.Identity(), LOGITS, labels)
    assert_close(torch.bincount(labels, weights[labels], 4)[:3], torch.full((3,), 1.5))


def test_a_net_that_agrees_with_no_label_leaves_nothing():
    indices, weights = confident_subset(nn.Identity(), LOGITS, (LOGITS.argmax(1) + 1) % 4)
    assert indices.shape == (0,)
    assert not weights.any()


def test_the_net_is_evaluated_as_it_predicts_and_left_in_its_mode():
    net = nn.Sequential(nn.Dropout(0.99), nn.BatchNorm1d(4))
    net[1].eval()
    before = net[1].running_mean.clone()
    indices, _ = confident_subset(net, LOGITS, LOGITS.argmax(1))
    assert len(indices) == 6
    assert (net.training, net[0].training, net[1].training) == (True, True, False)
    assert torch.equal(net[1].running_mean, before)


def test_views_are_averaged():
    shifts = iter([torch.tensor([0.0, 2.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0, 0.0])])
    x = torch.zeros(1, 4)
    indices, _ = confident_subset(nn.Identity(), x, torch.tensor([1]), augment=lambda part: part + next(shifts))
    assert indices.tolist() == [0]  # the first view is surer of class 1 than the second of class 0


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: confident_subset(nn.Identity(), LOGITS, torch.tensor([0])), ValueError, "6 samples but 1 labels"),
        (
            lambda: confident_subset(nn.Identity(), LOGITS[:0], torch.tensor([], dtype=torch.int64)),
            ValueError,
            "at least",
        ),
        (lambda: confident_subset(nn.Identity(), LOGITS, torch.full((6,), 4)), ValueError, "the net has 4 classes"),
        (
            lambda: confident_subset(nn.Identity(), LOGITS, torch.zeros(6, dtype=torch.int64), views=0),
            ValueError,
            "views",
        ),
        (
            lambda: confident_subset(nn.Identity(), LOGITS * torch.nan, torch.zeros(6, dtype=torch.int64)),
            FloatingPointError,
            "diverged",
        ),
    ],
)
def test_wrong_use_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
