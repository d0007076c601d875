import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.contrastive import LabelOverlay


def test_labels_replace_the_first_features_and_nothing_else(generator):
    x = torch.rand(4, 6, generator=generator)
    before, y = x.clone(), torch.tensor([0, 2, 1, 2])
    labelled = LabelOverlay(3, value=5.0)(x, y)
    assert_close(labelled[:, :3], 5.0 * torch.eye(3)[y])
    assert torch.equal(labelled[:, 3:], x[:, 3:])
    assert torch.equal(x, before)


def test_images_lose_the_first_pixels_of_their_first_channel():
    x = torch.ones(2, 3, 4, 4)
    labelled = LabelOverlay(5, value=2.0)(x, torch.tensor([4, 0]))
    assert labelled.shape == x.shape
    assert labelled[0, 0, 0].tolist() == [0, 0, 0, 0]
    assert labelled[0, 0, 1, 0] == 2
    assert labelled[1, 0, 0, 0] == 2
    assert (labelled[:, 1:] == 1).all()
    assert (labelled[:, 0].flatten(1)[:, 5:] == 1).all()


def test_labels_are_appended_to_vectors():
    x = torch.ones(2, 2)
    overlay = LabelOverlay(3, value=0.5, append=True)
    assert_close(overlay(x, torch.tensor([1, 2])), torch.tensor([[1, 1, 0, 0.5, 0], [1, 1, 0, 0, 0.5]]))
    assert_close(overlay(x), torch.tensor([[1.0, 1, 0, 0, 0]] * 2))


@pytest.mark.parametrize("append", [False, True])
def test_every_label_in_one_batch(append, generator):
    overlay, x = LabelOverlay(3, value=1.5, append=append), torch.rand(4, 5, generator=generator)
    expected = torch.cat([overlay(x, torch.full((4,), label)) for label in range(3)])
    assert torch.equal(overlay.every(x), expected)


def test_the_value_comes_from_the_first_batch_and_is_kept():
    overlay = LabelOverlay(2)
    overlay(torch.tensor([[1.0, 7.0, 3.0]]), torch.tensor([0]))
    assert overlay(torch.full((1, 3), 100.0), torch.tensor([1])).tolist() == [[0, 7, 100]]
    restored = LabelOverlay(2)
    restored.load_state_dict(overlay.state_dict())
    assert restored.value == 7
    fresh = overlay.fresh()
    fresh.value = 1.0
    assert overlay.value == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_stay(dtype):
    assert LabelOverlay(2)(torch.ones(3, 4, dtype=dtype), torch.tensor([0, 1, 1])).dtype == dtype


def test_samples_that_are_no_contiguous_tensors():
    x = torch.rand(6, 4).T
    assert_close(LabelOverlay(2, value=1.0)(x, torch.zeros(4).long())[:, 2:], x[:, 2:])


Y = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LabelOverlay(1), "n_classes must be at least 2"),
        (lambda: LabelOverlay(3, value=0.0), "value must be finite and not 0"),
        (lambda: LabelOverlay(3, value=float("nan")), "value must be finite"),
        (lambda: LabelOverlay(3)(torch.ones(2, 2), Y), "at least as many features as there are classes"),
        (lambda: LabelOverlay(3)(torch.ones(0, 4), Y[:0]), "at least as many features"),
        (lambda: LabelOverlay(3, append=True)(torch.ones(2, 1, 4), Y), "can be appended to vectors"),
        (lambda: LabelOverlay(3)(torch.zeros(2, 4), Y), "largest entry of the first batch is 0"),
        (lambda: LabelOverlay(2)(torch.ones(2, 4), Y + 1), "class 2 among the labels, but there are 2"),
        (lambda: LabelOverlay(2)(torch.ones(2, 4), Y - 1), "class -1 among the labels"),
        (lambda: LabelOverlay(2)(torch.ones(3, 4), Y), "3 class indices, one a sample"),
        (lambda: LabelOverlay(2)(torch.ones(2, 4), Y.float()), "class indices"),
    ],
)
def test_what_cannot_be_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
