"""The library: which studies there are, found by the names of their files, and the papers they stand for.

Nothing here imports a study before it is asked to: listing 150 studies reads one folder and one file.
"""

import difflib
import importlib
import importlib.util
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuropil.atlas.study import Study

__all__ = ["SCALES", "Library", "Paper", "unknown"]

SCALES = ("smoke", "default", "paper")
READINGS = ("full", "reconstruction")


@dataclass(frozen=True)
class Paper:
    """An entry of papers.toml.

    Attributes:
        title: of the paper.
        authors: full names, in order.
        year: of publication.
        link: where to read it.
        chapter: the study's folder.
        summary: one paragraph in our words.
        reading: "full", or "reconstruction" where the text could not be read and mechanisms are our reading of it.
    """

    title: str
    authors: tuple[str, ...]
    year: int
    link: str
    chapter: str
    summary: str
    reading: str

    @property
    def citation(self) -> str:
        """Family names and year: "Rossbroich & Zenke 2023"."""
        names = [_family_name(author) for author in self.authors]
        shown = f"{names[0]} et al." if len(names) > 2 else " & ".join(names)
        return f"{shown} {self.year}"


@dataclass(frozen=True)
class Library:
    """A folder of studies and the file that describes their papers.

    Attributes:
        folder: has one folder a chapter, with one file a study.
        papers_file: papers.toml.
        package: name under which `folder` can be imported; None imports each file by its path.
    """

    folder: Path
    papers_file: Path
    package: str | None = None

    @classmethod
    def own(cls) -> "Library":
        """The library inside this package."""
        root = Path(str(resources.files("neuropil")))
        return cls(root / "studies", root / "papers.toml", "neuropil.studies")

    @cached_property
    def studies(self) -> dict[str, Path]:
        """File of every study by slug, sorted by chapter and name.

        Raises:
            ValueError: if two chapters have a study of the same name.
        """
        found: dict[str, Path] = {}
        for file in sorted(self.folder.glob("*/*.py")):
            slug = file.stem.replace("_", "-")
            if file.stem.startswith("_"):
                continue
            if slug in found:
                raise ValueError(f"Two studies are named {slug}: {found[slug]} and {file}.")
            found[slug] = file
        return found

    @cached_property
    def papers(self) -> dict[str, Paper]:
        """Entries of papers.toml by slug.

        Raises:
            ValueError: if the file is broken, with the entry.
        """
        try:
            entries = tomllib.loads(self.papers_file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{self.papers_file} is not valid TOML: {error}") from error
        return {slug: _paper(slug, entry, self.papers_file) for slug, entry in entries.items()}

    @property
    def chapters(self) -> list[str]:
        """Chapters that have a study."""
        return sorted({file.parent.name for file in self.studies.values()})

    def find(self, slug: str) -> Path:
        """File of a study.

        Raises:
            ValueError: if there is none, with the nearest names.
        """
        if slug not in self.studies:
            raise ValueError(unknown("study", slug, self.studies))
        return self.studies[slug]

    def paper(self, slug: str) -> Paper:
        """Paper of a study.

        Raises:
            ValueError: if there is no such study, or papers.toml does not have it.
        """
        self.find(slug)
        if slug not in self.papers:
            raise ValueError(f"{self.papers_file} has no entry [{slug}].")
        return self.papers[slug]

    def load(self, slug: str) -> "Study":
        """Import a study.

        Raises:
            ValueError: if there is no such study, or it does not keep to the protocol of studies.
            ImportError: if its file cannot be imported, with the reason.
        """
        from neuropil.atlas.study import Study  # noqa: PLC0415 - the listing needs none of it

        file = self.find(slug)
        try:
            module = self._import(file)
        except Exception as error:
            raise ImportError(f"The study {slug} cannot be imported: {type(error).__name__}: {error}") from error
        return Study.of(slug, self.paper(slug), module)

    def _import(self, file: Path) -> ModuleType:
        if self.package is not None:
            return importlib.import_module(f"{self.package}.{file.parent.name}.{file.stem}")
        name = f"neuropil_study_{file.parent.name}_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python file.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is not known, and which known ones are near; all of them where none is and they are few."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(names) <= 20:
        hint = f"there {'is' if len(names) == 1 else 'are'} {', '.join(names) or 'none'}."
    else:
        hint = f"there are {len(names)}, see the list."
    return f"Unknown {what} {name!r}: {hint}"


def _paper(slug: str, entry: Any, file: Path) -> Paper:
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: {slug} must be a table [{slug}].")
    names = {field.name for field in fields(Paper)}
    if set(entry) != names:
        raise ValueError(
            f"{file}: [{slug}] lacks {sorted(names - set(entry)) or 'nothing'} "
            f"and should not have {sorted(set(entry) - names) or 'anything else'}."
        )
    authors = entry["authors"]
    if not isinstance(authors, list) or not authors or not all(isinstance(name, str) and name for name in authors):
        raise ValueError(f"{file}: authors of [{slug}] must be a list of names.")
    if type(entry["year"]) is not int:
        raise ValueError(f"{file}: year of [{slug}] must be a whole number.")
    for name in names - {"authors", "year"}:
        if not isinstance(entry[name], str) or not entry[name].strip():
            raise ValueError(f"{file}: {name} of [{slug}] must be text.")
    if entry["reading"] not in READINGS:
        raise ValueError(f"{file}: reading of [{slug}] must be {' or '.join(READINGS)}.")
    return Paper(**{**entry, "authors": tuple(authors), "summary": entry["summary"].strip()})


def _family_name(author: str) -> str:
    words = author.split()
    # "van Rossum", "de la Torre": the particle belongs to the name
    first = next((index for index, word in enumerate(words) if index and word[0].islower()), len(words) - 1)
    return " ".join(words[first:])
