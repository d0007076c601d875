"""Forwards alternate, threads and modes are put back, and memory is that of living tensors."""

import pytest
import torch
from torch import Tensor, nn

from neuropil.structure.speed import Timing, latency, peak_memory, resized


class Spy(nn.Module):
    """Writes down its calls."""

    def __init__(self, name: str, log: list):
        super().__init__()
        self.name, self.log = name, log
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        self.log.append((self.name, len(x), self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return self.norm(x)


def test_networks_are_timed_in_turns_in_inference_mode():
    log: list = []
    threads = torch.get_num_threads()
    nets = {name: Spy(name, log) for name in "ab"}
    got = latency(nets, torch.ones(2, 3), batch=5, runs=3, warm=2, threads=threads + 1)
    assert log == [(name, 5, False, True, threads + 1) for _ in range(5) for name in "ab"]
    assert torch.get_num_threads() == threads
    assert all(net.training for net in nets.values())
    assert all(len(t.seconds) == 3 and t.threads == threads + 1 and t.device == "cpu" for t in got.values())
    assert all(s > 0 for t in got.values() for s in t.seconds)


def test_an_error_in_a_forward_puts_everything_back():
    net, threads = nn.Linear(3, 2), torch.get_num_threads()
    with pytest.raises(RuntimeError):
        latency({"": net}, torch.ones(2, 4), threads=threads + 1)
    assert net.training
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


def test_one_network_under_two_names_is_put_back_in_its_mode():
    net = nn.Linear(3, 2)
    latency({"a": net, "b": net}, torch.ones(2, 3), runs=1, warm=0)
    assert net.training


def test_medians_quartiles_and_ratios():
    one = Timing(1, (4.0, 2.0, 1.0, 3.0, 5.0), 0, 1, "cpu")
    assert one.median == 3.0
    assert one.quartiles == (2.0, 4.0)
    assert one.ratio(Timing(1, (4.0, 1.0, 1.0, 1.0, 1.0), 0, 1, "cpu")) == 2.0  # not 3 / 1
    assert Timing(1, (2.0,), 0, 1, "cpu").quartiles == (2.0, 2.0)
    with pytest.raises(ValueError, match="equal rounds, got 5 and 1"):
        one.ratio(Timing(1, (2.0,), 0, 1, "cpu"))


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="nets is empty"):
        latency({}, torch.ones(2, 3))


def test_memory_of_a_chain_is_its_two_largest_neighbours():
    # No layer's input outlives it in a chain without gradients: input of the next and its output live together.
    net = nn.Sequential(nn.Linear(10, 100, bias=False), nn.Linear(100, 300, bias=False), nn.Linear(300, 5, bias=False))
    x = torch.ones(4, 10)
    assert peak_memory(net, x) == 4 * 4 * (100 + 300)
    assert peak_memory(net, x, batch=8) == 8 * 4 * (100 + 300)
    assert peak_memory(net.double(), x.double()) == 4 * 8 * (100 + 300)


def test_memory_counts_what_a_skip_keeps_alive_and_neither_views_nor_inputs():
    class Skip(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            kept = x + 1
            passing = (kept * 2).view(-1).view(x.shape)
            return kept + passing * 3  # all four at once: names hold two, the sum its operands

    x = torch.ones(8, 16)
    assert peak_memory(Skip(), x) == 4 * x.numel() * 4
    assert peak_memory(nn.Flatten(), x) == 0
    assert peak_memory(nn.Sequential(nn.ReLU(inplace=True)), x.clone()) == 0


def test_memory_without_tensors_is_none():
    class Bare(nn.Module):
        def forward(self, x: int) -> Tensor:
            return torch.ones(x)

    assert peak_memory(Bare(), (6,)) == 24


def test_an_example_is_brought_to_a_size():
    x, mask, words = torch.arange(3.0)[:, None], torch.eye(4), torch.arange(3)
    got = resized({"x": x, "mask": mask, "rest": (words, "text", 7)}, 5)
    assert got["x"].flatten().tolist() == [0, 1, 2, 0, 1]
    assert got["mask"] is mask
    assert got["rest"][0].tolist() == [0, 1, 2, 0, 1]
    assert got["rest"][1:] == ("text", 7)
    assert resized(x, 2).flatten().tolist() == [0, 1]
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        resized(x, 0)
