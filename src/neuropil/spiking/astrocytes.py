r"""Astrocytes: slow cells that listen to spikes and turn synapses up or down.

    output, state = astrocyte.step(drive, state, dt)

`LinearAstrocyte` follows the activity x of its domain (the sum of its spikes, or excess of some over others):

    tau da/dt = -a + w x + b                                        output a
    a <- a + (dt/tau) (w x + b - a)                                 "euler"
    a <- a_inf + (a - a_inf) exp(-dt/tau),  a_inf = w x + b         "exact" while x is held

`LiRinzelAstrocyte` is the calcium c of a closed cell whose stores open and shut, with IP3 p made by activity S:

    dc/dt = J_channel + J_leak - J_pump
    J_channel + J_leak = (r_C (m n h)^3 + r_L) (C_0 - (1 + c_1) c)  out of the store: c_1 (c_ER - c), C_0 = c + c_1 c_ER
    J_pump = v_ER c^2 / (c^2 + K_ER^2)                              back into the store
    dh/dt = a_2 (Q_2 (1 - h) - c h)                                 = (h_inf - h)/tau_h, h_inf = Q_2/(Q_2 + c)
    dp/dt = (p_rest - p)/tau_p + r_p S
    m = p/(p + d_1),   n = c/(c + d_5),   Q_2 = d_2 (p + d_1)/(p + d_3)

At fixed p the calcium rests, oscillates between about 0.35 and 0.64 uM, and rests again at a high level. Concentrations
are uM and rates per second; steps are ms, as everywhere.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from scipy.optimize import root_scalar
from torch import Tensor

from neuropil.neurons.ranges import require_finite, require_positive

__all__ = ["LiRinzelAstrocyte", "LiRinzelState", "LinearAstrocyte", "LinearAstrocyteState"]

Shape = int | tuple[int, ...]


class LinearAstrocyteState(NamedTuple):
    """Level of every cell, and for cells with a clip how often each was clipped (None without), int64."""

    a: Float[Tensor, "*cells"]
    clipped: Int[Tensor, "*cells"] | None = None


@dataclass(frozen=True, eq=False)
class LinearAstrocyte:
    """A leaky integrator of the spikes in its domain; equations in the module's docstring.

    Args:
        tau: time constant, ms, positive; with integration="euler" steps must not be longer.
        weight: w, what one spike a step is worth; a number or a tensor that broadcasts to the cells.
        bias: b, the level without activity; likewise.
        clip: least and greatest level, applied after each step; the state counts how often. Either may be infinite.
            Gradients stop where a level is clipped.
        integration: "euler", or "exact" for a drive that is held during the step. The two agree for small dt/tau.

    Raises:
        ValueError: if a number is out of its range, or the clip is empty.

    Source: Ivanov & Michmizos, NeurIPS 2021 (arXiv 2111.01760), who use Euler steps of 1 ms with tau = 100 ms.
    """

    tau: float
    weight: float | Tensor
    bias: float | Tensor = 0.0
    clip: tuple[float, float] | None = None
    integration: Literal["euler", "exact"] = "euler"

    def __post_init__(self) -> None:
        require_positive(tau=self.tau)
        require_finite(weight=self.weight, bias=self.bias)
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip must be a lower and an upper bound, in this order, got {self.clip}.")
        if self.integration not in ("euler", "exact"):
            raise ValueError(f"integration must be 'euler' or 'exact', got {self.integration!r}.")

    def init_state(self, n: Shape, like: Tensor) -> LinearAstrocyteState:
        """The state without activity: every cell at its bias.

        Args:
            n: number of cells, or the shape of several axes.
            like: a tensor of the wanted type and device.
        """
        shape = (n,) if isinstance(n, int) else n
        a = torch.as_tensor(self.bias, dtype=like.dtype, device=like.device).expand(shape).clone()
        return LinearAstrocyteState(a, None if self.clip is None else torch.zeros_like(a, dtype=torch.int64))

    def step(
        self, drive: Float[Tensor, "*#cells"], state: LinearAstrocyteState, dt: float
    ) -> tuple[Float[Tensor, "*cells"], LinearAstrocyteState]:
        """Advance by one step.

        Args:
            drive: activity of every domain during the step: spikes, or any difference of sums of them.
            state: what the last step returned, or `init_state`.
            dt: ms, positive.

        Returns:
            The levels after the step, and the state.

        Raises:
            ValueError: if dt is not positive, or with integration="euler" longer than tau.
        """
        require_positive(dt=dt)
        if self.integration == "euler" and dt > self.tau:
            raise ValueError(f"Euler steps must not exceed tau={self.tau:g} ms, got dt={dt:g}: they would overshoot.")
        target = self.weight * drive + self.bias
        if self.integration == "euler":
            a = state.a + (dt / self.tau) * (target - state.a)
        else:
            a = target + (state.a - target) * math.exp(-dt / self.tau)
        if self.clip is None:
            return a, LinearAstrocyteState(a)
        low, high = self.clip
        outside = (a < low) | (a > high)
        a = torch.where(a < low, low, torch.where(a > high, high, a))
        counts = torch.zeros_like(a, dtype=torch.int64) if state.clipped is None else state.clipped
        return a, LinearAstrocyteState(a, counts + outside)


class LiRinzelState(NamedTuple):
    """Calcium in the cytosol (uM), fraction h of channels not inactivated, and IP3 (uM), each (*cells)."""

    calcium: Float[Tensor, "*cells"]
    h: Float[Tensor, "*cells"]
    ip3: Float[Tensor, "*cells"]


@dataclass(frozen=True, eq=False)
class LiRinzelAstrocyte:
    """Calcium dynamics of an astrocyte driven by its neurons; equations in the module's docstring.

    Args:
        output: "release", 1 where the calcium is above the threshold and 0 elsewhere, or "calcium" itself, uM.
        threshold: of release, uM.
        integration: "rk4" (Runge & Kutta, 4th order; steps of 10 ms are ample) or "euler".
        r_C: greatest rate of the channels, 1/s.
        r_L: rate of the leak, 1/s.
        C_0: free calcium of the cell in units of the cytosol's volume, uM.
        c_1: volume of the store over that of the cytosol.
        v_ER: greatest rate of the pump, uM/s.
        K_ER: calcium at which the pump runs at half its rate, uM.
        d_1: dissociation constant of IP3, uM.
        d_2: of inhibiting calcium, uM.
        d_3: of IP3 where calcium inhibits, uM.
        d_5: of activating calcium, uM.
        a_2: rate at which calcium inactivates channels, 1/(uM s).
        ip3_rest: IP3 without activity, uM.
        tau_ip3: time constant of its breakdown, s.
        r_ip3: rate of production at a drive of 1, uM/s.

    Raises:
        ValueError: if a number is not positive.

    Source: Li & Rinzel, J. Theor. Biol. 166 (1994); IP3 and release as in Nadkarni & Jung, Phys. Rev. Lett. 91 (2003),
        eqs. 1-3; constants as in De Pitta et al., J. Biol. Phys. 35 (2009), table 1.
    """

    output: Literal["release", "calcium"] = "release"
    threshold: float = 0.196
    integration: Literal["rk4", "euler"] = "rk4"
    r_C: float = 6.0  # noqa: N815 - the literature's symbols
    r_L: float = 0.11  # noqa: N815
    C_0: float = 2.0
    c_1: float = 0.185
    v_ER: float = 0.9  # noqa: N815
    K_ER: float = 0.1
    d_1: float = 0.13
    d_2: float = 1.049
    d_3: float = 0.9434
    d_5: float = 0.08234
    a_2: float = 0.2
    ip3_rest: float = 0.16
    tau_ip3: float = 7.0
    r_ip3: float = 7.2

    def __post_init__(self) -> None:
        for choice, allowed in (("output", ("release", "calcium")), ("integration", ("rk4", "euler"))):
            if getattr(self, choice) not in allowed:
                raise ValueError(f"{choice} must be one of {allowed}, got {getattr(self, choice)!r}.")
        require_positive(**{name: value for name, value in vars(self).items() if name not in ("output", "integration")})

    def fixed_point(self, ip3: float) -> tuple[float, float]:
        """Where calcium and h would stay at a held concentration of IP3: the rest of lowest calcium, stable or not.

        Args:
            ip3: uM, at least 0.

        Returns:
            Calcium in uM, and h.

        Raises:
            ValueError: if ip3 is negative or not finite.
        """
        if not (math.isfinite(ip3) and ip3 >= 0):
            raise ValueError(f"ip3 must be finite and at least 0, got {ip3}.")
        inhibiting = self.d_2 * (ip3 + self.d_1) / (ip3 + self.d_3)

        def gain(calcium: float) -> float:
            return self._calcium_change(calcium, inhibiting / (inhibiting + calcium), ip3)

        # The store empties into the cytosol at 0, and at C_0 / (1 + c_1) only the pump is left.
        even = self.C_0 / (1.0 + self.c_1)
        grid = [even * (i / 1000) ** 2 for i in range(1001)]
        upper = next(i for i in range(1, 1001) if gain(grid[i]) <= 0)
        calcium = float(root_scalar(gain, bracket=(grid[upper - 1], grid[upper])).root)
        return calcium, inhibiting / (inhibiting + calcium)

    def init_state(self, n: Shape, like: Tensor) -> LiRinzelState:
        """The cells at rest, without activity.

        Args:
            n: number of cells, or the shape of several axes.
            like: a tensor of the wanted type and device.
        """
        shape = (n,) if isinstance(n, int) else n
        calcium, h = self.fixed_point(self.ip3_rest)
        return LiRinzelState(*(like.new_full(shape, value) for value in (calcium, h, self.ip3_rest)))

    def stored_calcium(self, calcium: Float[Tensor, "*cells"]) -> Float[Tensor, "*cells"]:
        """Concentration in the store, uM: what of C_0 is not in the cytosol, in units of the store's volume."""
        return (self.C_0 - calcium) / self.c_1

    def derivatives(self, drive: Float[Tensor, "*#cells"], state: LiRinzelState) -> LiRinzelState:
        """Right-hand sides of the three equations, per second.

        Args:
            drive: activity S of every domain.
            state: where they are evaluated.
        """
        c, h, p = state
        inhibiting = self.d_2 * (p + self.d_1) / (p + self.d_3)
        dh = self.a_2 * (inhibiting * (1.0 - h) - c * h)
        dp = (self.ip3_rest - p) / self.tau_ip3 + self.r_ip3 * drive
        return LiRinzelState(self._calcium_change(c, h, p), dh, dp)

    def step(
        self, drive: Float[Tensor, "*#cells"], state: LiRinzelState, dt: float
    ) -> tuple[Float[Tensor, "*cells"], LiRinzelState]:
        """Advance by one step.

        Args:
            drive: activity S of every domain, held during the step. At 1 IP3 is made at r_ip3; a spike that counts for
                1 ms is 1/dt.
            state: what the last step returned, or `init_state`.
            dt: ms, positive.

        Returns:
            Output after the step, and the state.

        Raises:
            ValueError: if dt is not positive.
        """
        require_positive(dt=dt)
        seconds = dt / 1000.0
        k1 = self.derivatives(drive, state)
        if self.integration == "euler":
            after = _moved(state, k1, seconds)
        else:
            k2 = self.derivatives(drive, _moved(state, k1, 0.5 * seconds))
            k3 = self.derivatives(drive, _moved(state, k2, 0.5 * seconds))
            k4 = self.derivatives(drive, _moved(state, k3, seconds))
            slopes = LiRinzelState(*(a + 2.0 * (b + c) + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)))
            after = _moved(state, slopes, seconds / 6.0)
        if self.output == "calcium":
            return after.calcium, after
        return (after.calcium > self.threshold).to(after.calcium), after

    def _calcium_change(self, c: Any, h: Any, p: Any) -> Any:
        """dc/dt, uM/s, of numbers or tensors."""
        opened = (p / (p + self.d_1)) * (c / (c + self.d_5)) * h
        released = (self.r_C * opened * opened * opened + self.r_L) * (self.C_0 - (1.0 + self.c_1) * c)
        return released - self.v_ER * c * c / (c * c + self.K_ER * self.K_ER)


def _moved(state: LiRinzelState, slopes: LiRinzelState, seconds: float) -> LiRinzelState:
    return LiRinzelState(*(x + seconds * k for x, k in zip(state, slopes, strict=True)))
