"""A graph as a recurrent policy: inputs are clamped, activity flows, the last nodes answer.

    a <- tanh(W^T a),   a[:observations] = observation         `steps` times; a stays from one observation to the next
    values = a[-actions:]

There is no bias, so a is an odd function of observation and state: silence answers with silence.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["GraphPolicy"]


class GraphPolicy(nn.Module):
    """One graph as a policy, or a population of them with a leading axis on weights, observations and states.

    Args:
        weights: from row to column, (*population, nodes, nodes), 0 where there is no edge or, in padding, no node.
        sizes: nodes of each graph, (*population).
        steps: that activity flows for one answer, (*population).
        observations: number of inputs, the first nodes.
        actions: number of outputs, the last nodes.

    Raises:
        ValueError: if a graph has fewer nodes than inputs and outputs, or a number is out of range.

    Source: Najarro, Sudhakaran & Risi 2023 (arXiv 2307.08197).
    """

    weights: Tensor
    steps: Tensor
    outputs: Tensor

    def __init__(
        self,
        weights: Float[Tensor, "*population nodes nodes"],
        sizes: Int[Tensor, "*population"],
        steps: Int[Tensor, "*population"],
        observations: int,
        actions: int,
    ):
        super().__init__()
        if observations < 1 or actions < 1:
            raise ValueError(f"observations and actions must be at least 1, got {observations} and {actions}.")
        least = int(sizes.min()) if sizes.numel() else observations + actions
        if least < observations + actions:
            raise ValueError(
                f"A policy of {observations} observations and {actions} actions needs as many nodes, "
                f"{observations + actions}; the network has {least}."
            )
        if steps.numel() and int(steps.min()) < 0:
            raise ValueError(f"steps must be at least 0, got {int(steps.min())}.")
        self.observations, self.actions = observations, actions
        self.register_buffer("weights", weights)
        self.register_buffer("steps", steps.to(weights.device))
        last = torch.arange(-actions, 0, device=weights.device)
        self.register_buffer("outputs", sizes.to(weights.device)[..., None] + last)

    def initial_state(self, batch: int) -> Float[Tensor, "*population batch nodes"]:
        """Silence, as at the start of an episode."""
        return self.weights.new_zeros(*self.weights.shape[:-2], batch, self.weights.shape[-1])

    def forward(
        self,
        observation: Float[Tensor, "*population batch observations"],
        state: Float[Tensor, "*population batch nodes"] | None = None,
    ) -> tuple[Float[Tensor, "*population batch actions"], Float[Tensor, "*population batch nodes"]]:
        """Answer a batch of observations.

        Args:
            observation: what the first nodes are held at.
            state: activity of all nodes; None for silence.

        Returns:
            Activity of the last nodes, in (-1, 1), and the new state.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if observation.shape[-1] != self.observations or observation.shape[:-2] != self.weights.shape[:-2]:
            wanted = (*self.weights.shape[:-2], "batch", self.observations)
            raise ValueError(f"observation is {tuple(observation.shape)}, wanted {wanted}.")
        batch = observation.shape[-2]
        a = self.initial_state(batch) if state is None else state
        if a.shape != (*self.weights.shape[:-2], batch, self.weights.shape[-1]):
            raise ValueError(
                f"state is {tuple(a.shape)}, wanted {(*self.weights.shape[:-2], batch, self.weights.shape[-1])}."
            )
        a = torch.cat([observation, a[..., self.observations :]], dim=-1)
        alike = self.steps.numel() > 0 and bool((self.steps == self.steps.flatten()[0]).all())
        for step in range(int(self.steps.max()) if self.steps.numel() else 0):
            flown = torch.tanh(torch.matmul(a, self.weights))
            flown = torch.cat([observation, flown[..., self.observations :]], dim=-1)
            a = flown if alike else torch.where((step < self.steps)[..., None, None], flown, a)
        return a.gather(-1, self.outputs[..., None, :].expand(*a.shape[:-1], self.actions)), a
