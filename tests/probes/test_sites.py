import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.probes.taps import Site, add, record, scale, sites, tap, zero
from tests.probes.nets import Nested, Shared, dense


@pytest.fixture
def x(generator):
    return torch.randn(7, 4, generator=generator)


# Sites


def test_patterns_give_sites_in_the_order_of_the_model():
    net = nn.ModuleDict({name: dense() for name in ("b", "a")})
    assert [site.module for site in sites(net, "*.0")] == ["b.0", "a.0"]
    assert [site.module for site in sites(net, ["a.0", "b.?"])] == [f"b.{i}" for i in range(5)] + ["a.0"]
    assert sites(net, "a.0", io="in", index=0, select=slice(2)) == [Site("a.0", "in", 0, slice(2))]


def test_a_shared_module_is_one_site_under_its_first_name():
    assert [site.module for site in sites(Shared())] == ["first", "idle"]
    assert [site.module for site in sites(Shared(), "alias")] == ["alias"]


def test_an_unknown_name_gets_the_closest():
    with pytest.raises(
        ValueError, match=r"No module of Nested matches 'nest\.lime'; the closest names are \['nest\.line'"
    ):
        sites(Nested(), "nest.lime")


def test_sites_are_hashable_with_slices_and_lists():
    a, b = (Site("m", select=(..., slice(1, None), [0, 2])) for _ in range(2))
    assert a == b and len({a, b}) == 1
    assert a != Site("m", select=(..., slice(2, None), [0, 2]))
    assert Site("m", select=torch.tensor([True, False, True])) == Site("m", select=[0, 2])
    assert str(Site("m", "in", 1)) == "input of m, index 1"


def test_wrong_sites_are_named():
    with pytest.raises(TypeError, match="select takes"):
        Site("m", select=torch.tensor([0.5]))
    with pytest.raises(ValueError, match="named twice"), tap(dense(), {"0": zero(), Site("0"): zero()}):
        pass


# Which tensor


def test_index_0_of_a_tensor_is_the_tensor(x):
    net, shapes = dense(), []
    with tap(net, {Site("0", index=0): lambda tensor, context: shapes.append(tensor.shape)}):
        net(x)
    assert shapes == [(7, 6)]
    with (
        pytest.raises(ValueError, match=r"0, index 1: there is no 1 in a single Tensor"),
        tap(net, {Site("0", index=1): zero()}),
    ):
        net(x)


@pytest.mark.parametrize(("index", "left"), [(0, 5.0), ((1, "twice"), 4.0), ((1, "gained"), 3.0), ((1, 1), 3.0)])
def test_nested_outputs_are_reached_by_a_path(x, index, left):
    net = Nested()
    with tap(net, {Site("nest", index=index): zero()}):
        assert_close(net(x), left * x)
    assert_close(net(x), 6 * x)


def test_an_output_that_is_no_tensor_is_named(x):
    net = Nested()
    with pytest.raises(ValueError, match="nest, index 2 has a NoneType"), tap(net, {Site("nest", index=2): zero()}):
        net(x)


@pytest.mark.parametrize("index", ["gain", 1])
def test_inputs_are_found_by_name_or_position_however_they_are_passed(x, index):
    net = Nested()
    with tap(net, {Site("nest", "in", index): scale(0.0)}):
        assert_close(net(x), 3 * x)


@pytest.mark.parametrize("index", ["x", 0])
def test_positional_inputs_have_names(x, index):
    net = Nested()
    with tap(net, {Site("nest", "in", index): scale(2.0)}):
        assert_close(net(x), 12 * x)


@pytest.mark.parametrize("index", ["bias", 5])
def test_an_argument_that_was_not_given_is_named(x, index):
    net = dense()
    with pytest.raises(ValueError, match="called with 1 arguments"), tap(net, {Site("0", "in", index): zero()}):
        net(x)


def test_the_model_itself_is_a_site(x):
    net = dense()
    with tap(net, {Site(""): scale(2.0)}), record(net, Site("", "in")) as recording:
        doubled = net(x)
    assert_close(doubled, 2 * net(x))
    assert torch.equal(recording[Site("", "in")], x)


def test_a_recurrent_layer_has_its_states(x):
    rnn = nn.LSTM(4, 3)
    with record(rnn, [Site("", index=(1, 0)), Site("", index=(1, 1))]) as recording:
        _, (h, c) = rnn(x[:, None])
    assert torch.equal(recording[Site("", index=(1, 0))], h)
    assert torch.equal(recording[Site("", index=(1, 1))], c)


@pytest.mark.parametrize("select", [(..., 2), (slice(None), [1, 3]), slice(2, 5), (..., slice(None, 2)), [0, -1]])
def test_a_selection_is_all_that_changes(x, select):
    net = dense()
    with record(net, "0") as plain:
        net(x)
    with tap(net, {Site("0", select=select): add(1.0)}), record(net, "0") as moved:
        net(x)
    expected = plain["0"].clone()
    expected[select] += 1
    assert torch.equal(moved["0"], expected)
