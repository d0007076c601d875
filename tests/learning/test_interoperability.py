"""Rules inside the training code that people have: optimizers, loss scaling, data loaders, compilation, processes."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from neuropil.learning.rules import RULES, find_rule
from tests.learning.nets import case

DROP_IN = [name for name, rule in RULES.items() if not rule.circuit]
OPTIMIZERS = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True},
    "Adam": {"lr": 0.01, "amsgrad": True},
    "AdamW": {"lr": 0.01},
    "RMSprop": {"lr": 0.01},
    "Adagrad": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
    "LBFGS": {"lr": 0.1, "max_iter": 2},
}


def made(name, net, **options):
    rule = find_rule(name)
    return rule.load()(net, cross_entropy, **{**rule.options, **({"label": 4} if rule.classes else {}), **options})


def training(net):
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["direct-feedback-alignment", "predictive-coding", "product-feedback-alignment"])
def test_any_optimizer_steps_on_the_gradients(name, optimizer):
    net, _, x, y = case("dense")
    rule = made(name, net)
    before = copy.deepcopy(net.state_dict())
    steps = getattr(torch.optim, optimizer)([*net.parameters(), *rule.parameters()], **OPTIMIZERS[optimizer])

    def closure():
        steps.zero_grad()
        return rule.backward(x, y)

    losses = [float(steps.step(closure)) for _ in range(15)]
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", DROP_IN)
def test_loss_scaling_goes_through_scale(name):
    net, _, x, y = case("dense")
    made(name, net).backward(x, y)
    plain = training(net)
    net.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scaler.scale(torch.zeros(()))
    made(name, net).backward(x, y, scale=scaler.get_scale())
    scaler.unscale_(optimizer)
    assert_close(training(net), plain)


@pytest.mark.parametrize(
    "name",
    ["backpropagation", "feedback-alignment", "product-feedback-alignment", "direct-feedback-alignment", "shallow"],
)
def test_autocast_computes_in_half_precision_and_keeps_whole_gradients(name):
    net, _, x, y = case("dense")
    made(name, net).backward(x, y)
    whole = training(net)
    net.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        made(name, net).backward(x, y)
    for gradient, expected in zip(training(net), whole, strict=True):
        assert gradient.dtype == torch.float32
        assert float((gradient - expected).norm() / expected.norm()) < 0.05


def test_batches_come_from_a_data_loader():
    net, _, x, y = case("dense")
    rule = made("direct-feedback-alignment", net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(x.repeat(8, 1), y.repeat(8)), batch_size=16, shuffle=True)
    losses = [sum(float(rule.learn(*batch, optimizer)) for batch in loader) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", DROP_IN)
def test_compiled_stages_give_the_same_gradient(name):
    net, _, x, y = case("dense")
    made(name, net).backward(x, y)
    plain = training(net)
    net.zero_grad()
    if name in ("feedback-alignment", "kolen-pollack", "sign-symmetry", "product-feedback-alignment"):
        # what is rerouted is found by its class: compile what lies around it
        stages = nn.Sequential(*(child if isinstance(child, nn.Linear) else compiled(child) for child in net))
    else:
        stages = nn.Sequential(*map(compiled, net))
    made(name, stages).backward(x, y)
    assert_close(training(net), plain)


def compiled(module):
    return torch.compile(module, backend="aot_eager")


def worker(rank, place, results):
    """One of two processes: every rule on half of the batch, gradients averaged by DistributedDataParallel."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    half = slice(0, 2) if rank == 0 else slice(2, 4)
    found = {}
    for name in SHARED:
        net, _, x, y = case("dense")
        wrapped = DistributedDataParallel(net)
        options = {"points": ["module.1", "module.3"]} if cuts(name) else {}
        made(name, wrapped, **options).backward(x[half], y[half])
        found[name] = training(net)
    if rank == 0:
        torch.save(found, results)
    torch.distributed.barrier()  # neither leaves while the other still listens
    torch.distributed.destroy_process_group()


def cuts(name):
    return not (name == "backpropagation" or name in REROUTED)


REROUTED = ["feedback-alignment", "kolen-pollack", "sign-symmetry", "product-feedback-alignment"]
# Left out: rules whose draws depend on the size of the batch (noise, wrong labels), and the one that leaves parameters
# without a gradient, which DistributedDataParallel does not wait for.
SHARED = [name for name in DROP_IN if name not in ("node-perturbation", "forward-forward", "shallow")]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this build of torch has no torch.distributed")
@pytest.mark.skipif(sys.platform == "win32", reason="file:// rendezvous of gloo needs a POSIX file system")
def test_two_processes_give_the_gradient_of_the_joint_batch(tmp_path: Path):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(worker, (tmp_path / "meeting", tmp_path / "gradients.pt"), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for name in SHARED:
        net, _, x, y = case("dense")
        options = {"points": ["1", "3"]} if cuts(name) else {}
        made(name, net, **options).backward(x[:4], y[:4])
        assert_close(found[name], training(net), msg=lambda text, name=name: f"{name}: {text}")
