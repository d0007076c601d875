import matplotlib.image
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.geometry import ResidualNet, RowRecurrent, image_folder


def tiny_state(depths=(2, 1)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ResidualNet((4, 8), depths, 3).state_dict()


def test_the_recurrent_network_follows_its_equation(generator):
    net = RowRecurrent(3, 5, 2, generator=generator)
    x = torch.rand(4, 6, 3, generator=generator)
    twin = nn.RNN(3, 5, batch_first=True)
    with torch.no_grad():
        twin.weight_ih_l0.copy_(net.receive.weight)
        twin.weight_hh_l0.copy_(net.recur.weight)
        twin.bias_ih_l0.copy_(net.receive.bias)
        twin.bias_hh_l0.zero_()
    _, last = twin(x)
    assert_close(net(x), net.readout(last[0]))


def test_a_residual_network_is_read_off_its_state():
    state = tiny_state()
    net = ResidualNet.from_state(state)
    assert [len(net.get_submodule(name)) for name in net.layers] == [2, 1]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reference = ResidualNet((4, 8), (2, 1), 3)
    reference.load_state_dict(state)
    assert_close(net(x), reference(x))
    assert net(x).shape == (2, 3)


def test_the_names_are_torchvisions():
    names = set(ResidualNet((64, 128, 256, 512), (2, 2, 2, 2), 1000).state_dict())
    assert len(names) == 122  # resnet18
    assert {"conv1.weight", "layer1.0.bn2.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= names
    parameters = sum(p.numel() for p in ResidualNet((64, 128, 256, 512), (2, 2, 2, 2), 1000).parameters())
    assert parameters == 11_689_512


def test_training_leaves_batch_statistics_and_the_given_state_alone():
    state = tiny_state()
    kept = {name: value.clone() for name, value in state.items()}
    net = ResidualNet.from_state(state)
    net.train()
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Backpropagation(net, cross_entropy).learn(x, torch.tensor([0, 2]), optimizer)
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert torch.equal(net.bn1.running_mean, state["bn1.running_mean"])
    assert not torch.equal(net.conv1.weight, state["conv1.weight"])


@pytest.mark.parametrize("state", [{}, {"fc.weight": torch.ones(2, 2)}, {"layer1.0.conv3.weight": torch.ones(1)}])
def test_other_states_are_refused(state):
    with pytest.raises(ValueError, match="resnet18"):
        ResidualNet.from_state(state)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("n02", "n01")):
        (tmp_path / name).mkdir()
        for index in range(3):
            pixels = rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)
            pixels[..., 0] = 255 * (1 - label)
            matplotlib.image.imsave(tmp_path / name / f"{index}.png", pixels)
    grey = rng.integers(0, 255, (12, 9), dtype=np.uint8)
    matplotlib.image.imsave(tmp_path / "n01" / "grey.png", grey, cmap="gray")
    return tmp_path


def test_images_are_cut_and_normalised_and_classes_are_in_order_of_names(folder):
    data = image_folder(folder, 5, 16, seed=1)
    assert (len(data.x_train), len(data.x_test), data.shape) == (5, 1, (3, 16, 16))
    assert data.class_names == ("n01", "n02")
    red = (1 - 0.485) / 0.229
    for x, y in zip(data.x_train, data.y_train, strict=True):
        if y == 1:
            assert_close(x[0], torch.full((16, 16), red), atol=1e-4, rtol=0)
    assert torch.equal(image_folder(folder, 5, 16, seed=1).x_train, data.x_train)
    everything = image_folder(folder, 100, 16)
    assert (len(everything.x_train), len(everything.x_test)) == (6, 1)


def test_folders_without_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="0 images in subfolders"):
        image_folder(tmp_path / "none", 5)
    with pytest.raises(ValueError, match="count and size"):
        image_folder(tmp_path, 0)
