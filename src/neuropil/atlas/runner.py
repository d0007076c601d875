"""Running one study: from its name to a folder with a result, whatever happens in between."""

import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from neuropil.atlas.environment import describe
from neuropil.atlas.files import WriteError, write_json
from neuropil.atlas.folders import differences, held, made, new_folder, now, unfinished
from neuropil.atlas.library import SCALES, Library, unknown
from neuropil.atlas.progress import Progress, Silence
from neuropil.atlas.results import Result, record
from neuropil.atlas.run import Run
from neuropil.atlas.settings import as_json
from neuropil.atlas.study import Study

__all__ = ["Plan", "execute", "interruptible", "run_study"]


@dataclass(frozen=True)
class Plan:
    """How a study is to be run; the same plan gives the same numbers.

    Attributes:
        slug: of the study.
        scale: "smoke", "default" or "paper".
        seed: from which the study makes its generators, 0 or more.
        jobs: processes that the study may use, at least 1.
        device: "cpu", "cuda", "cuda:1", ...
        settings: fields of the scale's settings to replace.
        record: folder that receives `<slug>.json` of a complete run; None records nothing.
        library: where studies come from; by default those of this package.

    Raises:
        ValueError: if one of them is out of range, or the device is not there.
    """

    slug: str
    scale: str = "default"
    seed: int = 0
    jobs: int = 1
    device: str = "cpu"
    settings: Mapping[str, Any] = field(default_factory=dict)
    record: Path | None = None
    library: Library = field(default_factory=Library.own)

    def __post_init__(self) -> None:
        self.library.find(self.slug)
        if self.scale not in SCALES:
            raise ValueError(unknown("scale", self.scale, SCALES))
        if self.seed < 0 or self.jobs < 1:
            raise ValueError(f"seed must be 0 or more and jobs at least 1, got {self.seed} and {self.jobs}.")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:  # CUDA's absence is an AssertionError
            reason = str(error).partition("\n")[0]
            raise ValueError(f"The device {self.device!r} cannot be used: {reason}") from error

    def result(self, study: Study) -> Result:
        """The result of a run that has not begun."""
        return Result(
            slug=self.slug,
            title=study.paper.title,
            scale=self.scale,
            seed=self.seed,
            started=now(),
            settings=as_json(study.settings(self.scale, self.settings)),
            environment=describe(torch.device(self.device)),
        )


def run_study(
    slug: str,
    *,
    scale: str = "default",
    seed: int = 0,
    output: Path = Path("runs"),
    jobs: int = 1,
    device: str = "cpu",
    settings: Mapping[str, Any] | None = None,
    resume: Path | Literal["latest"] | None = None,
    record: Path | None = None,
    progress: Progress | None = None,
    library: Library | None = None,
) -> Result:
    """Run a study in a folder of its own.

    A study that fails, or is interrupted by Ctrl-C or SIGTERM, gives a result too: its status says so, and it has what
    was measured until then.

    Args:
        slug: of the study.
        scale: "smoke", "default" or "paper".
        seed: from which the study makes its generators.
        output: folder of all runs; this one is `<output>/<slug>/<time>`.
        jobs: processes that the study may use.
        device: on which it computes.
        settings: fields of the scale's settings to replace; text is converted.
        resume: folder of an unfinished run to go on with, or "latest" for the latest one with the same scale, seed
            and settings. Claims are made anew, what is in checkpoints is not computed again.
        record: folder that receives `<slug>.json` if the run completes.
        progress: shows how far the study is; nothing by default.
        library: where studies come from; by default those of this package.

    Returns:
        The result, with its folder.

    Raises:
        ValueError: if an argument is wrong, there is nothing to resume, or another run is in the folder.
        ImportError: if the study cannot be imported.
        OSError: if no folder can be made.
    """
    plan = Plan(slug, scale, seed, jobs, device, settings or {}, record, library or Library.own())
    study = plan.library.load(slug)
    result = plan.result(study)
    if record is not None:
        made(record)
    earlier = None if resume is None else _earlier(resume, output, result)
    folder = earlier.folder if earlier and earlier.folder else new_folder(output, slug)
    return execute(plan, folder, progress=progress, study=study)


def execute(plan: Plan, folder: Path, *, progress: Progress | None = None, study: Study | None = None) -> Result:
    """Run a study in a folder that exists; what is there of an earlier session is taken up.

    Args:
        plan: how.
        folder: of the run.
        progress: shows how far the study is.
        study: imported from the plan's library if not given.

    Returns:
        The result, whatever became of the study.

    Raises:
        ValueError: if another run is in the folder, or the plan does not fit the study.
        WriteError: if a complete run cannot be recorded.
    """
    study = study or plan.library.load(plan.slug)
    progress = progress or Silence()
    result = plan.result(study)
    result.folder = folder
    with held(folder), interruptible(), _one_thread():
        if (folder / "result.json").is_file():
            earlier = Result.read(folder)
            result.started, result.seconds = earlier.started, earlier.seconds
        (folder / "traceback.txt").unlink(missing_ok=True)
        run = Run(result, folder, jobs=plan.jobs, device=plan.device, progress=progress)
        progress.start()
        try:
            run.write()
            write_json(folder / "environment.json", result.environment)
            study.run(study.settings(plan.scale, plan.settings), run)
            _end(run, "complete")
        except KeyboardInterrupt:
            _end(run, "interrupted")
        except (Exception, SystemExit) as error:  # whatever a study does, its result says so
            with suppress(OSError):
                (folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            _end(run, "failed", error)
        finally:
            progress.stop()
    if plan.record is not None and result.status == "complete":
        record(result, plan.record)
    return result


def _end(run: Run, status: Literal["complete", "interrupted", "failed"], error: BaseException | None = None) -> None:
    run.result.status = status
    if error is not None:
        kind = "" if isinstance(error, WriteError) else f"{type(error).__name__}: "
        run.result.error = kind + str(error).strip().partition("\n")[0]  # traceback.txt has the rest
    try:
        run.write()
    except WriteError as refusal:
        # The disk is full: the file keeps what it had, and the caller hears why.
        run.result.status, run.result.error = "failed", run.result.error or str(refusal)


def _earlier(resume: Path | Literal["latest"], output: Path, wanted: Result) -> Result:
    if resume == "latest":
        return unfinished(output, wanted.slug, wanted)
    found = Result.read(Path(resume))
    if found.folder is None or found.status == "complete":
        raise ValueError(f"Cannot resume {resume}: it is {'complete' if found.folder else 'no folder of a run'}.")
    told = differences(found, wanted)
    if told:
        raise ValueError(f"Cannot resume {resume}: {told}.")
    return found


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, as a cluster or a service manager sends it, does what Ctrl-C does: once, so that writing can end."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread a process: the order of sums, hence every digit, is the same on any machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
