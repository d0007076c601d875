"""Boolean gates as tasks: two inputs, two outputs, the larger says the answer.

The score asks for a margin, because a grown graph is often symmetric: where two outputs are copies of one node they
are equal, and the larger of them is decided by rounding. With lead = right output minus wrong output,

    score = n - 4                                       a network of n < 4 nodes
            1 + sum over rows of min(lead, m) / m       m the margin; the row (0, 0) does not count

A row is right if its lead reaches the margin; the activity starts from silence in every row. A net without bias answers
(0, 0) with silence, a tie that reads as class 0: so the row (0, 0) is always right, and gates with another answer there
are not on offer.
"""

from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.neurons.ranges import require_positive
from neuropil.structure.develop.networks import Networks

__all__ = ["GATES", "GateTask"]

GATES = {"and": (0, 0, 0, 1), "or": (0, 1, 1, 1), "xor": (0, 1, 1, 0)}
"""Answers to (0, 0), (0, 1), (1, 0), (1, 1)."""

LEAST = 4


class GateTask:
    """Score networks on a gate; called with networks, as a fitness to be maximised: at most 4, all rows right.

    Args:
        gate: a name in `GATES`.
        margin: by which the right output must lead.
        extra: steps beyond the diameter that activity flows.

    Raises:
        ValueError: if the gate is unknown or the margin not positive.

    Source: the task is of Najarro, Sudhakaran & Risi 2023; the margin is ours.
    """

    def __init__(self, gate: str = "xor", margin: float = 0.05, extra: int = 0):
        if gate not in GATES:
            raise ValueError(f"gate must be one of {sorted(GATES)} (silence answers silence), got {gate!r}.")
        require_positive(margin=margin)
        self.gate, self.margin, self.extra = gate, margin, extra

    def leads(self, networks: Networks) -> Float[Tensor, "networks 4"]:
        """Right output minus wrong output in each row.

        Raises:
            ValueError: if a network has fewer than 4 nodes.
        """
        policy = networks.policy(2, 2, self.extra)
        rows = policy.weights.new_tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        values, _ = policy(rows.expand(len(networks), 4, 2))
        sign = 2 * policy.weights.new_tensor(GATES[self.gate]) - 1
        return (values[..., 1] - values[..., 0]) * sign

    def right(self, networks: Networks) -> Bool[Tensor, "networks 4"]:
        """Which rows are right, by the margin."""
        right = self.leads(networks) >= self.margin
        right[:, 0] = True
        return right

    def __call__(self, networks: Networks) -> Float[Tensor, " networks"]:
        """The score of each network."""
        scores = (networks.sizes - LEAST).to(networks.graphs.weights)
        able = networks.sizes >= LEAST
        if not bool(able.any()):
            return scores
        leads = self.leads(networks.select(able))[:, 1:]
        return scores.masked_scatter(able, 1 + (leads.clamp(max=self.margin) / self.margin).sum(1))
