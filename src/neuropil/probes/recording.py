"""Tensors that were kept, and a budget that is asked before any is."""

from collections.abc import Iterator, Mapping

from torch import Tensor

from neuropil.neurons.ranges import require
from neuropil.probes.sites import Site, Where

__all__ = ["Budget", "Recording"]


class Budget:
    """Bytes that may be kept.

    Args:
        max_bytes: how many; None is without limit.

    Raises:
        ValueError: if there are less than 0.
    """

    def __init__(self, max_bytes: int | None = None):
        if max_bytes is not None:
            require("max_bytes", max_bytes, 0, float("inf"))
        self.max_bytes = max_bytes
        self.spent = 0

    def spend(self, tensor: Tensor, what: str) -> None:
        """Reserve what a tensor takes, before it is copied.

        Raises:
            MemoryError: if that is more than is left.
        """
        wanted = tensor.numel() * tensor.element_size()
        if self.max_bytes is not None and self.spent + wanted > self.max_bytes:
            raise MemoryError(
                f"Keeping {what}, {tuple(tensor.shape)}, takes {wanted:,} bytes beside {self.spent:,}: more than "
                f"max_bytes={self.max_bytes:,}. Select fewer units, or reduce while streaming."
            )
        self.spent += wanted


class Recording(Mapping[Where, Tensor]):
    """What a run left at some sites: recording[site] where a site was met once, `calls` where more often.

    A site may be given by its module's name where that names one site only.
    """

    def __init__(self, sites: list[Site]):
        self._calls: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def __getitem__(self, where: Where) -> Tensor:
        site, calls = self._find(where), self.calls(where)
        if len(calls) != 1:
            raise ValueError(f"{site} was met {len(calls)} times: recording.calls(site) has all of them.")
        return calls[0]

    def __contains__(self, where: object) -> bool:
        return any(where in (site, site.module) for site in self._calls)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def calls(self, where: Where) -> tuple[Tensor, ...]:
        """Give the tensors of every call, in order.

        Raises:
            KeyError: if the site was not recorded, or a name stands for none or several.
        """
        return tuple(self._calls[self._find(where)])

    def append(self, site: Site, tensor: Tensor) -> None:
        """Keep one more."""
        self._calls[site].append(tensor)

    def _find(self, where: Where) -> Site:
        if isinstance(where, Site):
            if where in self._calls:
                return where
            raise KeyError(f"{where} was not recorded; there are {[str(site) for site in self._calls]}.")
        found = [site for site in self._calls if site.module == where]
        if len(found) != 1:
            raise KeyError(f"{where!r} names {len(found)} of {[str(site) for site in self._calls]}.")
        return found[0]
