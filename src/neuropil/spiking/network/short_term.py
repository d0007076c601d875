"""Short-term plasticity: what a spike releases depends on the spikes before it.

At a spike, after the time since the last one:

    u <- u exp(-t/tau_facilitation),  x <- 1 + (x - 1) exp(-t/tau_recovery)
    u <- u + U (1 - u)
    release = u x,  x <- x - release

The weight is multiplied by the release. All synapses of a neuron share u and x.
"""

from dataclasses import dataclass

from neuropil.neurons.ranges import require, require_positive

__all__ = ["ShortTermPlasticity"]


@dataclass(frozen=True)
class ShortTermPlasticity:
    """Facilitation and depression of release.

    Args:
        utilisation: U, the fraction that a first spike releases, in (0, 1].
        tau_facilitation: ms, positive.
        tau_recovery: ms, positive.

    Raises:
        ValueError: if a parameter is out of its range.

    Source: Tsodyks, Pawelzik & Markram, Neural Computation 10 (1998); Tsodyks & Markram, PNAS 94 (1997).
    """

    utilisation: float = 0.5
    tau_facilitation: float = 20.0
    tau_recovery: float = 200.0

    def __post_init__(self) -> None:
        require("utilisation", self.utilisation, 0.0, 1.0, ends=(False, True))
        require_positive(tau_facilitation=self.tau_facilitation, tau_recovery=self.tau_recovery)
