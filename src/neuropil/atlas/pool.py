"""Running many studies: each in a process of its own, here or on the workers of a cluster.

A study that takes its process down with it (os._exit, out of memory, a crash in native code) is reported as failed;
the others never notice. That is why no process serves two studies: one pool for all would break for all.
"""

import multiprocessing
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from neuropil.atlas.folders import made, new_folder
from neuropil.atlas.library import Library
from neuropil.atlas.results import Result
from neuropil.atlas.runner import Plan, execute, interruptible

__all__ = ["run_many"]


def run_many(
    slugs: Sequence[str],
    *,
    scale: str = "default",
    seed: int = 0,
    output: Path = Path("runs"),
    jobs: int = 1,
    device: str = "cpu",
    record: Path | None = None,
    scheduler: str | None = None,
    done: Callable[[Result], None] | None = None,
    library: Library | None = None,
) -> list[Result]:
    """Run several studies, several at a time.

    Ctrl-C and SIGTERM stop those that run; they and those that had not begun are "interrupted".

    Args:
        slugs: of the studies.
        scale: "smoke", "default" or "paper".
        seed: from which every study makes its generators.
        output: folder of all runs; a cluster must share it.
        jobs: how many studies at a time; each has one process.
        device: on which they compute.
        record: folder that receives `<slug>.json` of every complete run.
        scheduler: address of a Dask scheduler, whose workers take the place of processes here.
        done: called with every result as it comes.
        library: where studies come from; by default those of this package.

    Returns:
        One result a study, in the order of `slugs`.

    Raises:
        ValueError: if an argument is wrong, before anything is run.
        ImportError: if a scheduler is given and Dask is missing.
        OSError: if the output folder cannot be made or the scheduler is not there.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")
    library = library or Library.own()
    # absolute: the workers of a cluster start elsewhere
    recorded = None if record is None else record.absolute()
    plans = [Plan(slug, scale, seed, 1, device, {}, recorded, library) for slug in slugs]
    for folder in filter(None, (output, record)):
        made(folder)
    output = output.absolute()
    workers = Processes(jobs) if scheduler is None else Cluster(scheduler)
    results: dict[Future[Result], Result] = {}
    with workers, interruptible():
        futures = {workers.submit(plan, output): plan for plan in plans}

        def collect(future: Future[Result]) -> None:
            if future not in results:
                results[future] = _result(future, futures[future])
                if done is not None:
                    done(results[future])

        try:
            for future in as_completed(futures):
                collect(future)
        except KeyboardInterrupt:
            workers.stop(list(futures))
            for future in futures:
                collect(future)
    return [results[future] for future in futures]


class Processes:
    """Worker processes of this machine, a new one for each study.

    Args:
        jobs: how many at a time.
    """

    def __init__(self, jobs: int):
        self._threads = ThreadPoolExecutor(jobs)
        self._stopping = threading.Event()
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown()

    def submit(self, plan: Plan, output: Path) -> "Future[Result]":
        """Run a plan as soon as there is room."""
        return self._threads.submit(self._run, plan, output)

    def stop(self, futures: Sequence["Future[Result]"]) -> None:
        """Interrupt what runs, and wait until it has written what it has."""
        self._stopping.set()
        for future in futures:
            future.cancel()
        # Again and again: a process may be on its way while the others are told.
        while wait(futures, timeout=0.5).not_done:
            for child in set(multiprocessing.active_children()) - self._others:
                child.terminate()

    def _run(self, plan: Plan, output: Path) -> Result:
        folder = new_folder(output, plan.slug)
        # Spawned, not forked: threads of torch and BLAS do not survive a fork.
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=context, initializer=_ignore_ctrl_c) as pool:
                return pool.submit(execute, plan, folder).result()
        except BrokenProcessPool:
            if self._stopping.is_set():
                return _settle(plan, folder, "interrupted")
            return _settle(plan, folder, "failed", "Its process died: killed, out of memory, or a crash.")
        except Exception as error:
            return _settle(plan, folder, "failed", f"{type(error).__name__}: {error}")


class Cluster:
    """Workers of a Dask cluster.

    Args:
        address: of its scheduler, e.g. "tcp://10.0.0.1:8786".

    Raises:
        ImportError: if Dask is missing.
        OSError: if nobody answers at the address.
    """

    def __init__(self, address: str):
        try:
            from distributed import Client  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ImportError("A scheduler needs Dask: pip install 'neuropil[cluster]'.") from error
        self._client = Client(address)
        self._executor: Any = self._client.get_executor(pure=False)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *error: object) -> None:
        self._executor.shutdown(wait=False)
        self._client.close()

    def submit(self, plan: Plan, output: Path) -> "Future[Result]":
        """Run a plan on a worker."""
        return self._executor.submit(_run_in_new_folder, plan, output)

    def stop(self, futures: Sequence["Future[Result]"]) -> None:
        """Take back what has not begun; what runs on other machines runs on, and its folder will have its result."""
        for future in futures:
            future.cancel()


def _run_in_new_folder(plan: Plan, output: Path) -> Result:
    return execute(plan, new_folder(output, plan.slug))


def _ignore_ctrl_c() -> None:
    """A terminal sends Ctrl-C to every process of the group; the parent alone decides what becomes of its children."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _result(future: "Future[Result]", plan: Plan) -> Result:
    if future.cancelled():
        return _settle(plan, None, "interrupted", "It had not begun.")
    error = future.exception()
    return future.result() if error is None else _settle(plan, None, "failed", f"{type(error).__name__}: {error}")


def _settle(
    plan: Plan, folder: Path | None, status: Literal["interrupted", "failed"], error: str | None = None
) -> Result:
    """The result of a study that could not write its own end; what it had measured is kept."""
    title = plan.library.papers[plan.slug].title if plan.slug in plan.library.papers else plan.slug
    result = Result(plan.slug, title, plan.scale, plan.seed, status=status, error=error, folder=folder)
    if folder is None:
        return result
    if (folder / "result.json").is_file():
        written = Result.read(folder)
        if written.status != "running":  # it had come to its end before its process died
            return written
        result = replace(written, status=status, error=error)
    with suppress(OSError):
        result.write(folder / "result.json")
    return result
