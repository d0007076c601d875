"""A recurrent network that computes by coming to rest.

Groups of units with potentials u and activities rho = sigma(u), joined by connections of independent kernels:

    G(u)_post = sum over connections pre -> post of  W rho_pre  (+ b where pre comes before post)
    F(u, beta) = G(u) - u,     + beta dL/d rho_out on the last group
    u <- u + step F                                                   step 1 is u <- G(u)

The input takes part as it is; a linear readout of the last group gives the logits. A positive beta pushes the loss UP.
At the free point u* = G(u*), beta = 0, with D = diag(sigma'(u*)) and W the recurrent block matrix (receivers in rows),

    tangent    D (I - W D)^-1 g         how the activities answer a force g on the potentials
    adjoint    (I - D W^T)^-1 D g       the derivative of a loss with dL/d rho = g by a force on the potentials

which are one and the same only if W is symmetric. Both are found by the damped iteration that found u*.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.learning.equilibrium.activations import Activation, HoloSigmoid, slope
from neuropil.learning.equilibrium.connections import Connection, ConvolutionDown, ConvolutionUp, Dense
from neuropil.learning.equilibrium.forces import output_force, read_out
from neuropil.learning.equilibrium.relaxation import (
    AT_REST,
    Groups,
    ImplicitRest,
    Rest,
    like,
    masked,
    relax,
    require_majority,
    solve,
)
from neuropil.learning.equilibrium.wiring import comes_before, find_wiring, group_names
from neuropil.learning.networks import linear
from neuropil.learning.rule import Loss

__all__ = ["FixedPointNetwork"]


class FixedPointNetwork(nn.Module):
    """Groups of units that settle together, and a linear readout of the last.

    Args:
        sizes: number of inputs, then of units of each group; the groups are called "l1", "l2", ..., "out".
        connections: "chain" (each group hears the one before and the one after), "loop" (each hears the one before, and
            "l1" hears "out"), or for each group the groups that it hears, "in" among them:
            {"l1": ["in", "out"], "out": ["l1"]}.
        activation: elementwise; None for HoloSigmoid().
        angle: between each feedback kernel and the transpose of its forward kernel at the start, degrees:
            W_fb = cos(angle) W_ff^T + sin(angle) W_init. At 0 they are symmetric, at 90 independent. A kernel without a
            counterpart is independent at every angle.
        scale: factor on the initial kernels between groups. LeCun's scale (1) is too large for some small networks
            to come to rest.
        classes: number of logits; None for the size of the last group.
        generator: source of the initial weights (LeCun normal; biases start at 0); None is torch's default generator.

    Attributes:
        groups: their names, in order.
        shapes: of one sample's units, by group.
        wiring: the connections as (pre, post).

    Raises:
        ValueError: if a size, the angle or the scale is out of range, or the connections name no group, leave a group
            unheard-of or the input out.

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), sections 3 and 5.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        connections: str | Mapping[str, Sequence[str]] = "chain",
        activation: Activation | None = None,
        *,
        angle: float = 90.0,
        scale: float = 1.0,
        classes: int | None = None,
        generator: torch.Generator | None = None,
    ):
        sizes = list(sizes)
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes needs a number of inputs and one group at least, all positive; got {sizes}.")
        names = group_names(len(sizes) - 1)
        wiring = find_wiring(names, connections)
        units = dict(zip(("in", *names), sizes, strict=True))
        made = {}
        for pre, post in wiring:
            forward = comes_before(pre, post, names)
            made[pre, post] = Dense(units[pre], units[post], bias=forward, generator=generator)
        readout = linear(sizes[-1], sizes[-1] if classes is None else classes, generator=generator)
        shapes = {name: (size,) for name, size in units.items()}
        self._assemble(shapes, made, readout, activation, angle, scale)

    @classmethod
    def convolutional(
        cls,
        image: Sequence[int],
        channels: Sequence[int],
        classes: int,
        activation: Activation | None = None,
        *,
        angle: float = 90.0,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> "FixedPointNetwork":
        """A chain of maps: 3 x 3 convolutions with softmax pooling upwards, their transposes downwards.

        Every convolution keeps the size but the last, which is not padded; every pooling halves it. The paper's own is
        (3, 32, 32) with channels (128, 256, 512, 512).

        Args:
            image: channels, height and width of the input.
            channels: of each group.
            classes: number of logits.
            activation: as in the constructor.
            angle: as in the constructor, between the kernels of a map and of its transpose.
            scale: as in the constructor.
            generator: as in the constructor.

        Raises:
            ValueError: if a number is out of range, or a map has no whole number of 2 x 2 windows.
        """
        image, channels = tuple(image), tuple(channels)
        if len(image) != 3 or min(image) < 1:
            raise ValueError(f"image needs channels, height and width, all positive; got {image}.")
        if not channels or min(channels) < 1:
            raise ValueError(f"channels needs a positive number for each group, one at least; got {channels}.")
        names = group_names(len(channels))
        shapes: dict[str, tuple[int, ...]] = {"in": image}
        made: dict[tuple[str, str], Connection] = {}
        before = "in"
        for name, count in zip(names, channels, strict=True):
            last = name == names[-1]
            height, width = (side - 2 * last for side in shapes[before][1:])
            if height < 2 or width < 2 or height % 2 or width % 2:
                raise ValueError(
                    f"Group {name!r} would pool a map of {height} x {width}: sides must be even and at least 2."
                )
            shapes[name] = (count, height // 2, width // 2)
            up = ConvolutionUp(shapes[before][0], count, padding=0 if last else 1, generator=generator)
            made[before, name] = up
            if before != "in":
                made[name, before] = ConvolutionDown(up, generator=generator)
            before = name
        readout = linear(math.prod(shapes[before]), classes, generator=generator)
        network = cls.__new__(cls)
        network._assemble(shapes, made, readout, activation, angle, scale)
        return network

    def _assemble(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        made: Mapping[tuple[str, str], Connection],
        readout: nn.Linear,
        activation: Activation | None,
        angle: float,
        scale: float,
    ) -> None:
        if not 0 <= angle <= 180:
            raise ValueError(f"angle must lie between 0 and 180 degrees, got {angle}.")
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale must be positive and finite, got {scale}.")
        nn.Module.__init__(self)
        self.shapes = dict(shapes)
        self.groups = tuple(name for name in shapes if name != "in")
        self.wiring: list[tuple[str, str]] = list(made)
        self.connections = nn.ModuleDict({f"{pre}-{post}": module for (pre, post), module in made.items()})
        self.readout = readout
        self.activation: Activation = HoloSigmoid() if activation is None else activation
        self._rotate(math.radians(angle), scale)

    @torch.no_grad()
    def _rotate(self, angle: float, scale: float) -> None:
        """Turn the feedback kernels towards the transposes of the forward ones, and scale both."""
        for pre, post in self.wiring:
            if pre != "in":
                self.connection(pre, post).weight.mul_(scale)
        for pre, post in self.wiring:
            if pre != post and not comes_before(pre, post, self.groups) and (post, pre) in self.wiring:
                kernel, forward = self.connection(pre, post).weight, self.connection(post, pre).weight
                mirrored = forward.T if forward.dim() == 2 else forward
                kernel.copy_(math.cos(angle) * mirrored + math.sin(angle) * kernel)

    def connection(self, pre: str, post: str) -> Any:
        """The module that carries activity from one group, or from "in", to another."""
        return self.connections[f"{pre}-{post}"]

    def _between(self) -> list[tuple[tuple[str, str], Any]]:
        """The connections between groups: all but those of the input."""
        return [
            (pair, module)
            for pair, module in zip(self.wiring, self.connections.values(), strict=True)
            if pair[0] != "in"
        ]

    @property
    def linear(self) -> bool:
        """Whether every group hears a linear function of the others' activities."""
        return all(self.connection(*pair).linear for pair in self.wiring)

    @property
    def units(self) -> int:
        """Number of units in all groups."""
        return sum(math.prod(self.shapes[group]) for group in self.groups)

    def external(self, x: Float[Tensor, "batch *features"]) -> Groups:
        """What the input sends, by the groups that hear it.

        Raises:
            ValueError: if a sample has another shape than the network's input.
        """
        if tuple(x.shape[1:]) != self.shapes["in"]:
            raise ValueError(f"x must be (batch, {', '.join(map(str, self.shapes['in']))}), got {tuple(x.shape)}.")
        return {post: self.connection(pre, post)(x) for pre, post in self.wiring if pre == "in"}

    def drives(self, activity: Mapping[str, Tensor], external: Mapping[str, Tensor]) -> Groups:
        """G: what arrives at each group from the others and from outside."""
        arriving = dict(external)
        for (pre, post), connection in self._between():
            sent = connection(activity[pre], activity[post])
            arriving[post] = arriving[post] + sent if post in arriving else sent
        return {group: arriving[group] for group in self.groups}

    def activities(self, potentials: Mapping[str, Tensor]) -> Groups:
        """Rho = sigma(u)."""
        return {group: self.activation(u) for group, u in potentials.items()}

    def logits(self, activity: Mapping[str, Tensor]) -> Tensor:
        """Readout of the last group's activity, (batch, classes)."""
        return read_out(self.readout, activity["out"])

    def field(
        self,
        u: Mapping[str, Tensor],
        x: Float[Tensor, "batch *features"],
        y: Tensor | None = None,
        beta: complex | Tensor = 0.0,
        loss_fn: Loss = cross_entropy,
    ) -> Groups:
        """F: the velocity of the potentials.

        Args:
            u: potentials by group, (batch, *units), real or complex.
            x: inputs.
            y: targets; needed with a nudge.
            beta: strength of the nudge, real or complex, one number or one a sample.
            loss_fn: mean-reduced loss of (logits, target).

        Raises:
            ValueError: if a nudge comes without targets, or is complex with a loss that has no complex extension.
        """
        activity = self.activities(u)
        velocity = {group: arriving - u[group] for group, arriving in self.drives(activity, self.external(x)).items()}
        if isinstance(beta, Tensor) or beta != 0:
            if y is None:
                raise ValueError("A nudge needs targets: pass y.")
            force = output_force(self.readout, loss_fn, activity["out"], y)
            velocity["out"] = velocity["out"] + like(beta, force) * force
        return velocity

    @torch.no_grad()
    def settle(
        self, x: Float[Tensor, "batch *features"], *, steps: int = 150, tol: float = 1e-6, step: float = 0.5
    ) -> Rest:
        """Relax from u = 0 without a nudge.

        Args:
            x: inputs.
            steps: the most steps to take.
            tol: residual at which all samples must be for the relaxation to end early.
            step: fraction of F that is taken, in (0, 1].

        Returns:
            The network at rest; samples with a residual above 1e-2 are marked as restless.

        Raises:
            NotSettledError: if those are more than half of the batch.
        """
        return self.rest(self.external(x), steps=steps, tol=tol, step=step)

    @torch.no_grad()
    def rest(self, external: Mapping[str, Tensor], *, steps: int = 150, tol: float = 1e-6, step: float = 0.5) -> Rest:
        """As `settle`, from what the input sends."""
        first = next(iter(external.values()))
        start = {group: first.new_zeros(len(first), *self.shapes[group]) for group in self.groups}
        u, result = relax(lambda u: self.drives(self.activities(u), external), start, steps=steps, tol=tol, step=step)
        settled = result.residual <= AT_REST
        require_majority(settled, result, "come to rest", AT_REST)
        return Rest(u, self.activities(u), result.residual, settled, result.steps)

    def forward(
        self, x: Float[Tensor, "batch *features"], *, steps: int = 150, tol: float = 1e-6, step: float = 0.5
    ) -> Float[Tensor, "batch classes"]:
        """Logits at rest, differentiable by the implicit function theorem (first derivatives only).

        A restless sample has the logits of its last state, and no gradient beyond the readout.

        Args:
            x: inputs.
            steps: as in `settle`, and for the adjoint system of the derivative.
            tol: as in `settle`.
            step: as in `settle`.

        Raises:
            NotSettledError: as `settle`; on the way back if the adjoint system does not settle.
        """
        external = self.external(x)
        rest = self.rest({group: sent.detach() for group, sent in external.items()}, steps=steps, tol=tol, step=step)
        drives = self.drives(rest.activity, external)

        def back(gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            by_group = dict(zip(self.groups, gradients, strict=True))
            answer, answered = self.adjoint(rest, by_group, steps=steps, tol=tol, step=step)
            return tuple(masked(answer, rest.settled & answered).values())

        held = ImplicitRest.apply(back, list(rest.potentials.values()), *drives.values())
        u = dict(zip(self.groups, held, strict=True))
        return self.logits({"out": self.activation(u["out"])})

    @torch.no_grad()
    def tangent(
        self, rest: Rest, force: Tensor, *, steps: int, tol: float = 1e-6, step: float = 0.5
    ) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """D (I - W D)^-1 g: how the activities at rest answer a small force on the last group's potentials.

        Args:
            rest: the network at rest.
            force: g, (batch, *units of the last group).
            steps: the most steps to take.
            tol: residual, relative to the largest force of a sample, at which all must be to end early.
            step: as in `settle`.

        Returns:
            The answer by group, and which samples' answers are settled to 10%.

        Raises:
            NotSettledError: if more than half are not.
        """
        slopes = {group: slope(self.activation, u) for group, u in rest.potentials.items()}

        def apply(v: Groups) -> Groups:
            return self.differential(rest.activity, {group: slopes[group] * v[group] for group in self.groups})

        source = {group: force if group == "out" else torch.zeros_like(u) for group, u in rest.potentials.items()}
        answer, answered = solve(apply, source, steps=steps, tol=tol, step=step)
        return {group: slopes[group] * answer[group] for group in self.groups}, answered

    @torch.no_grad()
    def adjoint(
        self, rest: Rest, gradient: Mapping[str, Tensor], *, steps: int, tol: float = 1e-6, step: float = 0.5
    ) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """(I - D W^T)^-1 dL/du: derivative of a loss by a force on the potentials, recurrent backpropagation.

        Args:
            rest: the network at rest.
            gradient: dL/du by group.
            steps: the most steps to take.
            tol: residual, relative to the largest dL/du of a sample, at which all must be to end early.
            step: as in `settle`.

        Returns:
            The derivative by group, and which samples' are settled to 10%.

        Raises:
            NotSettledError: if more than half are not.
        """
        slopes = {group: slope(self.activation, u) for group, u in rest.potentials.items()}
        send_back = self._transposed(rest.activity)

        def apply(v: Groups) -> Groups:
            sent = send_back(v)
            return {group: slopes[group] * sent[group] for group in self.groups}

        return solve(apply, dict(gradient), steps=steps, tol=tol, step=step)

    def differential(self, activity: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> Groups:
        """Change of G along a change of the activities, sigma not applied: the recurrent kernels alone."""
        moved: Groups = {}
        for (pre, post), connection in self._between():
            sent = connection.differential(activity[pre], activity[post], change[pre], change[post])
            moved[post] = moved[post] + sent if post in moved else sent
        return {group: moved.get(group, torch.zeros_like(change[group])) for group in self.groups}

    def _transposed(self, activity: Groups) -> Callable[[Groups], Groups]:
        """The transposed differential of G at the given activities."""
        if not self.linear:
            silent = {group: torch.zeros_like(rho) for group, rho in activity.items()}
            pull: Callable[..., Any] = torch.func.vjp(lambda rho: self.drives(rho, silent), activity)[1]
            return lambda v: pull(v)[0]

        between = self._between()

        def send_back(v: Groups) -> Groups:
            sent: Groups = {}
            for (pre, post), connection in between:
                back = connection.transposed(v[post])
                sent[pre] = sent[pre] + back if pre in sent else back
            return {group: sent.get(group, torch.zeros_like(v[group])) for group in self.groups}

        return send_back
