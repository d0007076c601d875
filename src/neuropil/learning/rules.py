"""Every drop-in rule by name, as `neuropil compare` and the tests of all rules know them.

A rule trains any network, or a circuit of its own; it may need to know the number of classes or where a network is cut.
`contender` says all that, so that rules can be swapped by name:

    compare({name: contender(name, data, net) for name in ("backpropagation", "dfa", "pfa")}, data)
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from neuropil.data import Dataset
from neuropil.learning.rule import LearningRule
from neuropil.learning.training import Contender

__all__ = ["RULES", "KnownRule", "contender", "find_rule"]

Maker = Callable[[torch.Generator], nn.Module]
Circuit = Callable[[Dataset, Sequence[int]], Maker]


@dataclass(frozen=True)
class KnownRule:
    """A rule that has a name.

    Attributes:
        name: what it is called by.
        where: "module:class", imported when it is used.
        short: a shorter name.
        options: arguments that it is made with here.
        classes: name of the argument that takes the number of classes, if there is one.
        circuit: makes the network's maker from the data and the hidden sizes, for rules that train a circuit of their
            own; None for rules that train any network.
    """

    name: str
    where: str
    short: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: str = ""
    circuit: Circuit | None = None

    def load(self) -> Callable[..., LearningRule]:
        """The class."""
        module, _, name = self.where.partition(":")
        return getattr(importlib.import_module(f"neuropil.learning.{module}"), name)


def _inhibitory_circuit(data: Dataset, hidden: Sequence[int]) -> Maker:
    network = importlib.import_module("neuropil.learning.inhibition").DisinhibitoryNetwork
    return lambda generator: network((data.features, *hidden, data.classes), generator=generator)


def _fixed_point_circuit(data: Dataset, hidden: Sequence[int]) -> Maker:
    network = importlib.import_module("neuropil.learning.equilibrium").FixedPointNetwork
    # Half of LeCun's scale: at the whole, small networks often do not come to rest.
    return lambda generator: network(
        (data.features, *hidden, data.classes), scale=0.5, classes=data.classes, generator=generator
    )


_KNOWN = (
    KnownRule("backpropagation", "backpropagation:Backpropagation", "bp"),
    KnownRule("feedback-alignment", "feedback:FeedbackAlignment", "fa"),
    KnownRule("kolen-pollack", "feedback:KolenPollack", "kp"),
    KnownRule("sign-symmetry", "feedback:SignSymmetry", "usf"),
    KnownRule("product-feedback-alignment", "feedback:ProductFeedbackAlignment", "pfa"),
    KnownRule("direct-feedback-alignment", "feedback:DirectFeedbackAlignment", "dfa"),
    KnownRule("shallow", "feedback:Shallow"),
    KnownRule("predictive-coding", "energy:PredictiveCoding", "pc"),
    KnownRule("incremental-predictive-coding", "energy:IncrementalPredictiveCoding", "ipc"),
    KnownRule("inference-learning", "energy:InferenceLearning", "il", {"proximal": False}),
    KnownRule("forward-forward", "contrastive:ForwardForward", "ff", classes="label"),
    KnownRule("node-perturbation", "perturbation:NodePerturbation", "np"),
    KnownRule("dis-inhibition", "inhibition:DisinhibitoryControl", "inhibition", circuit=_inhibitory_circuit),
    KnownRule(
        "equilibrium-propagation",
        "equilibrium:EquilibriumPropagation",
        "ep",
        {"free_steps": 50, "nudge_steps": 30, "tol": 1e-2},
        circuit=_fixed_point_circuit,
    ),
    KnownRule(
        "recurrent-backpropagation",
        "equilibrium:RecurrentBackprop",
        "rbp",
        {"free_steps": 50, "tol": 1e-2},
        circuit=_fixed_point_circuit,
    ),
)
RULES: Mapping[str, KnownRule] = MappingProxyType({rule.name: rule for rule in _KNOWN})


def find_rule(name: str) -> KnownRule:
    """Look a rule up by its name or its short name.

    Raises:
        ValueError: if there is none; the message has the nearest and all names.
    """
    known = {**{rule.short: rule for rule in _KNOWN if rule.short}, **RULES}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower(), known, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    names = ", ".join(f"{rule.name} ({rule.short})" if rule.short else rule.name for rule in _KNOWN)
    raise ValueError(f"No rule is named {name!r}.{guess} There are: {names}.")


def contender(
    name: str,
    data: Dataset,
    net: Maker | None = None,
    *,
    hidden: Sequence[int] | None = None,
    points: Sequence[str] | str | None = None,
    rate: float = 1e-3,
    **options: Any,
) -> Contender:
    """A rule by name on a network, or on a circuit of its own.

    Args:
        name: of the rule, or its short name.
        data: for the number of features and classes.
        net: makes the network from a generator; not needed by rules that train a circuit of their own.
        hidden: sizes of the hidden layers of such a circuit.
        points: where the network is cut into stages, for rules that cut; see `Stages`.
        rate: learning rate.
        options: further arguments of the rule.

    Raises:
        ValueError: if there is no such rule, or it lacks a net or hidden sizes.
    """
    rule = find_rule(name)
    make = rule.load()
    given = {**rule.options, **options}
    if rule.classes:
        given.setdefault(rule.classes, data.classes)
    if rule.circuit:
        if not hidden:
            raise ValueError(f"{rule.name} trains a circuit of its own: say its hidden sizes.")
        net = rule.circuit(data, hidden)
    elif net is None:
        raise ValueError(f"{rule.name} needs a net.")
    if points is not None and "points" in inspect.signature(make).parameters and not rule.circuit:
        given["points"] = points
    return Contender(net, partial(make, **given), rate)
