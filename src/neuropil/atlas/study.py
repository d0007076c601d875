"""A study: one file with a question, three scales of settings and a function that answers."""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from neuropil.atlas.library import SCALES, Paper, unknown
from neuropil.atlas.settings import override

if TYPE_CHECKING:
    from neuropil.atlas.run import Run

__all__ = ["Study"]


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, imported.

    Attributes:
        slug: its name.
        paper: what it is about.
        question: first line of its docstring.
        scales: a frozen dataclass of settings for "smoke", "default" and "paper".
        run: the study itself: takes settings and a Run, returns nothing.
    """

    slug: str
    paper: Paper
    question: str
    scales: Mapping[str, Any]
    run: "Callable[[Any, Run], None]"

    @classmethod
    def of(cls, slug: str, paper: Paper, module: ModuleType) -> "Study":
        """Read a study from its module.

        Raises:
            ValueError: if the module lacks a question, a scale or `run`.
        """
        question = (module.__doc__ or "").strip().partition("\n")[0]
        scales, run = getattr(module, "SCALES", None), getattr(module, "run", None)
        if not question:
            raise ValueError(f"The study {slug} has no docstring: its first line is the question.")
        if not isinstance(scales, Mapping) or set(scales) != set(SCALES):
            raise ValueError(f"The study {slug} needs SCALES with {', '.join(SCALES)}.")
        for name, settings in scales.items():
            # asking the class for its parameters: "frozen" is nowhere else to be seen
            frozen = getattr(type(settings), "__dataclass_params__", None)
            if frozen is None or not frozen.frozen:
                raise ValueError(f"The study {slug}: SCALES[{name!r}] must be a frozen dataclass.")
        if not callable(run):
            raise ValueError(f"The study {slug} has no function run(settings, run).")
        return cls(slug, paper, question, scales, cast("Callable[[Any, Run], None]", run))

    def settings(self, scale: str, changes: Mapping[str, Any] | None = None) -> Any:
        """Settings of a scale, with changes.

        Args:
            scale: "smoke", "default" or "paper".
            changes: fields to replace; text is converted to the field's type.

        Raises:
            ValueError: if there is no such scale or field, or a text does not fit.
        """
        if scale not in self.scales:
            raise ValueError(unknown("scale", scale, SCALES))
        return override(self.scales[scale], changes or {})
