import math

import pytest
import torch
from torch.testing import assert_close

from neuropil.data import CORRUPTIONS, corrupt
from neuropil.data.corruptions import DRAWN


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=4, channels=3, side=28, dtype=torch.float32):
    return torch.rand(count, channels, side, side, generator=generator(1), dtype=dtype)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_images_keep_shape_dtype_and_range_and_the_given_ones_are_left_alone(kind):
    for dtype in (torch.float32, torch.float64):
        for images in (pictures(dtype=dtype), pictures(1, 1, 8, dtype), pictures(dtype=dtype).transpose(2, 3)):
            before = images.clone()
            for severity in (1, 5):
                found = corrupt(images, kind, severity, generator())
                assert found.shape == images.shape
                assert found.dtype == dtype
                assert 0 <= float(found.min()) <= float(found.max()) <= 1
                assert not torch.equal(found, images)
            assert torch.equal(images, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severities_grow_and_seeds_repeat(kind):
    clean = pictures(8)
    gaps = [float((corrupt(clean, kind, s, generator()) - clean).square().mean()) for s in range(1, 6)]
    # Coarse pixels of 28/2 fit the grid and lose less than those of 28 * 0.6 that do not.
    assert gaps[0] < gaps[-1] if kind == "pixelate" else gaps == sorted(gaps)
    assert gaps[0] > 0
    assert torch.equal(corrupt(clean, kind, 3, generator(5)), corrupt(clean, kind, 3, generator(5)))
    if kind in DRAWN:
        assert not torch.equal(corrupt(clean, kind, 3, generator(5)), corrupt(clean, kind, 3, generator(6)))
        with pytest.raises(ValueError, match=f"{kind} is drawn: pass a generator"):
            corrupt(clean, kind)


def test_noise_has_the_moments_it_is_named_after():
    grey = torch.full((10, 1, 100, 100), 0.5, dtype=torch.float64)
    noisy = corrupt(grey, "gaussian noise", amount=0.05, generator=generator())
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.02)
    shot = corrupt(grey, "shot noise", amount=100.0, generator=generator())
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.002)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.5 / 100), rel=0.02)
    impulse = corrupt(grey, "impulse noise", amount=0.2, generator=generator())
    for value in (0.0, 1.0):
        assert float((impulse == value).double().mean()) == pytest.approx(0.1, abs=0.005)


def test_blurs_leave_a_flat_image_and_the_mass_of_a_point():
    flat = torch.full((2, 3, 21, 21), 0.7, dtype=torch.float64)
    point = torch.zeros(2, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1.0
    for kind in ("gaussian blur", "mean blur", "motion blur"):
        assert_close(corrupt(flat, kind, 5, generator()), flat)
        spread = corrupt(point, kind, 3, generator())
        assert_close(spread.sum((1, 2, 3)), torch.ones(2, dtype=torch.float64))
        assert_close(spread, spread.flip(2, 3))  # an even kernel: nothing is shifted


def test_closed_forms():
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1.0
    box = corrupt(point, "mean blur", amount=7)
    assert_close(box[0, 0, 7:14, 7:14], torch.full((7, 7), 1 / 49))
    bell = corrupt(point.double(), "gaussian blur", amount=1.5)[0, 0]
    assert_close(bell[10, 12] / bell[10, 10], torch.tensor(math.exp(-4 / 4.5), dtype=torch.float64))
    at = torch.arange(-10.0, 11.0, dtype=torch.float64)
    assert float((bell.sum(0) * at.square()).sum()) == pytest.approx(1.5**2, rel=0.05)  # cut at three deviations
    images = pictures()
    assert_close(corrupt(images, "contrast", amount=1.0), images)
    assert_close(corrupt(images, "contrast", amount=0.3).mean((2, 3)), images.mean((2, 3)))
    assert_close(corrupt(images, "brightness", amount=0.4), (images + 0.4).clamp(max=1))
    blocks = corrupt(images, "pixelate", amount=0.5)
    assert_close(blocks[..., ::2, ::2], blocks[..., 1::2, 1::2])
    assert_close(blocks[:, :, 0, 0], images[:, :, :2, :2].mean((2, 3)))


def test_a_blurred_path_has_its_length_and_an_angle_of_its_own_in_every_image():
    point = torch.zeros(200, 1, 41, 41, dtype=torch.float64)
    point[..., 20, 20] = 1.0
    path = corrupt(point, "motion blur", amount=11, generator=generator())[:, 0]
    at = torch.arange(-20.0, 21.0, dtype=torch.float64)
    across = (path.sum(1) * at.square()).sum(1)
    down = (path.sum(2) * at.square()).sum(1)
    assert bool((across > down - 0.2).all())  # flatter than 45 degrees
    assert float(down.max() - down.min()) > 1
    assert float((across + down).mean()) == pytest.approx(11**2 / 12, abs=1.0)  # variance of a straight path


def test_black_stays_black_where_nothing_is_added():
    black = torch.zeros(2, 1, 16, 16)
    for kind in CORRUPTIONS:
        found = corrupt(black, kind, 3, generator())
        assert bool((found > 0).any()) == (kind in ("gaussian noise", "impulse noise", "brightness"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "snow"}, ValueError, "no corruption 'snow'; there are gaussian noise"),
        ({"severity": 6}, ValueError, "severity must be from 1 to 5, got 6"),
        ({"severity": 2.5}, TypeError, "severity must be an integer"),
        ({"amount": -0.1}, ValueError, "amount of gaussian noise must be above 0 and finite"),
        ({"amount": float("nan")}, ValueError, "amount of gaussian noise"),
        ({"kind": "impulse noise", "amount": 1.5}, ValueError, "at most 1, got 1.5"),
        ({"kind": "mean blur", "amount": 4}, ValueError, "odd number of pixels"),
        ({"images": torch.zeros(3, 8, 8)}, ValueError, r"images must be \(batch, channels, height, width\)"),
        ({"images": torch.zeros(0, 1, 8, 8)}, ValueError, "not empty"),
        ({"images": torch.full((1, 1, 8, 8), 255.0)}, ValueError, "between 0 and 1, got 255 to 255"),
        ({"images": torch.full((1, 1, 8, 8), float("nan"))}, ValueError, "between 0 and 1"),
        ({"images": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, TypeError, r"got torch\.uint8"),
        ({"images": [[0.0]]}, TypeError, "got list"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    call = {"images": torch.zeros(1, 1, 8, 8), "kind": "gaussian noise", "generator": generator()} | change
    with pytest.raises(error, match=message):
        corrupt(**call)
