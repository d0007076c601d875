"""The command line: list, show, run, report, data. What is heavy is imported inside the commands that need it."""

import io
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuropil import __version__
from neuropil.atlas.library import Library, unknown

if TYPE_CHECKING:
    from neuropil.atlas.results import Result

__all__ = ["main"]

RAN, FALSE_CLAIM, BAD_ARGUMENT, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
# click's UsageError where typer still stands on click, typer's own since: the only public way to it
USAGE_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, help="Published systems as components, their claims as experiments.")
data_app = typer.Typer(help="Data sets: what there is and where it is.")
app.add_typer(data_app, name="data")

Slug = Annotated[str, typer.Argument(metavar="SLUG", help="A study.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A data set.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def main(arguments: Sequence[str] | None = None, library: Library | None = None) -> int:
    """Run a command, as the program `neuropil` does.

    Args:
        arguments: of the command; those of the process by default.
        library: where studies come from; by default those of this package.

    Returns:
        0 if it ran, 1 with --strict if a claim is false, 2 for a bad argument, 3 if a run failed, 130 if it was
        interrupted.
    """
    from neuropil.atlas.files import WriteError
    from neuropil.data.errors import DataError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no run is lost to a terminal that lacks a letter
    words = _with_value_of_resume(list(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    try:
        command = typer.main.get_command(app)
        code = command.main(words, prog_name="neuropil", obj=library or Library.own(), standalone_mode=False)
        return code if isinstance(code, int) else RAN
    except USAGE_ERROR as error:
        return _complain(f"{error.format_message().rstrip('.')}; see neuropil --help", BAD_ARGUMENT)
    except (WriteError, DataError) as error:
        return _complain(error, FAILED)
    except (ValueError, ImportError, OSError) as error:
        return _complain(error, BAD_ARGUMENT)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", INTERRUPTED)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"neuropil {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Show the version.")
    ] = False,
) -> None: ...


@app.command("list")
def list_studies(
    context: typer.Context,
    chapter: Annotated[str | None, typer.Option(help="Only the studies of one chapter.")] = None,
    as_json: Json = False,
) -> None:
    """List the studies."""
    library: Library = context.obj
    if chapter is not None and chapter not in library.chapters:
        raise ValueError(unknown("chapter", chapter, library.chapters))
    slugs = [slug for slug, file in library.studies.items() if chapter in (None, file.parent.name)]
    papers = {slug: library.paper(slug) for slug in slugs}
    if as_json:
        _print_json([{"slug": slug, **asdict(paper)} for slug, paper in papers.items()])
    else:
        rows = [(slug, paper.chapter, paper.title, paper.citation) for slug, paper in papers.items()]
        _print_table(("study", "chapter", "paper", "authors"), rows)


@app.command()
def show(
    context: typer.Context,
    slug: Slug,
    results: Annotated[Path, typer.Option(help="Folder of recorded results.")] = Path("results"),
    as_json: Json = False,
) -> None:
    """Show a study: the paper, its settings, and what was recorded."""
    from neuropil.atlas.results import Result
    from neuropil.atlas.settings import as_json as settings_json

    study = context.obj.load(slug)
    recorded = results / f"{slug}.json"
    result = Result.read(recorded) if recorded.is_file() else None
    scales = {name: settings_json(settings) for name, settings in study.scales.items()}
    if as_json:
        answer = {"slug": slug, **asdict(study.paper), "question": study.question, "scales": scales}
        return _print_json({**answer, "result": result.to_json() if result else None})
    from neuropil.atlas.card import card

    return _console().print(card(study, scales, result))


@app.command()
def run(
    context: typer.Context,
    slugs: Annotated[list[str] | None, typer.Argument(metavar="SLUG", help="Studies to run.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Run every study.")] = False,
    scale: Annotated[str, typer.Option(help="smoke, default or paper.")] = "default",
    seed: Annotated[int, typer.Option(help="From which the study makes all its randomness.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes: of one study, or of several studies at a time.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    resume: Annotated[str | None, typer.Option(metavar="[FOLDER|latest]", help="Go on with an unfinished run.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting.")] = None,
    record: Annotated[Path | None, typer.Option(help="Folder that receives <study>.json of complete runs.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if a claim does not hold; undecided ones do not count.")
    ] = False,
    as_json: Json = False,
    scheduler: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Dask scheduler whose workers run.")] = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html into the run's folder.")] = False,
) -> int:
    """Run studies, and show what they claim and what was measured.

    Exit codes: 0 ran, 1 (with --strict) a claim does not hold, 2 bad argument, 3 a run failed, 130 interrupted.
    """
    os.environ.setdefault("MPLBACKEND", "agg")  # figures are files: no study ever opens a window
    library: Library = context.obj
    if bool(slugs) == everything:
        raise ValueError("Name the studies to run, or give --all.")
    names = list(library.studies) if everything else list(dict.fromkeys(slugs or ()))
    options: dict[str, Any] = {"scale": scale, "seed": seed, "output": output, "jobs": jobs, "device": device}
    options |= {"record": record, "library": library}
    # what a study prints must not get between the braces
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        if everything or scheduler or len(names) > 1:
            if resume or changes:
                raise ValueError("--resume and --set need exactly one study, run on this machine.")
            results, reports = _run_several(names, scheduler, options), [None] * len(names)
        else:
            options |= {"settings": _pairs(changes or ()), "resume": resume}
            results, reports = _run_one(names[0], not no_report, options)
    if as_json:
        documents = [_document(*pair) for pair in zip(results, reports, strict=True)]
        _print_json(documents if everything or len(names) > 1 else documents[0])
    return _exit_code(results, strict)


@app.command("compare")
def compare_rules(
    rules: Annotated[list[str], typer.Argument(metavar="RULE", help="Learning rules, e.g. bp dfa pfa pc ff.")],
    *,
    net: Annotated[str, typer.Option(help="mlp:128-64, conv, or your own module:function.")] = "mlp:64",
    data: Annotated[str, typer.Option(help="A data set, or your own module:function.")] = "digits",
    points: Annotated[str, typer.Option(help="Where the net is cut into stages: names, or blocks.")] = "",
    flat: Annotated[bool, typer.Option("--flat", help="Give your net samples as vectors.")] = False,
    epochs: Annotated[int, typer.Option(help="Passes over the training set.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Samples an update.")] = 100,
    seeds: Annotated[int, typer.Option(help="How many paired seeds.")] = 3,
    rates: Annotated[str, typer.Option(help="Learning rates: each rule gets its best.")] = "0.001,0.003,0.01",
    train: Annotated[int | None, typer.Option(help="Training samples; all by default.")] = None,
    test: Annotated[int | None, typer.Option(help="Test samples; all by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes.")] = 1,
    output: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    as_json: Json = False,
) -> None:
    """Compare learning rules on one network and data: accuracy, angle to the gradient, time and memory."""
    from neuropil.atlas.display import progress_on
    from neuropil.contest import Contest, printed_league, run_contest

    os.environ.setdefault("MPLBACKEND", "agg")

    try:
        grid = [float(rate) for rate in rates.split(",")]
    except ValueError:
        raise ValueError(f"--rates needs numbers separated by commas, got {rates!r}.") from None
    contest = Contest(rules, net, data, points, epochs, batch_size, seeds, grid, train, test, flat=flat)
    progress = progress_on(_console(stderr=True))
    progress.start()
    try:
        table, folder = run_contest(contest, output, jobs=jobs, track=progress.track)
    finally:
        progress.stop()
    if as_json:
        _print_json({"league": json.loads(str(table.to_json(orient="records"))), "folder": str(folder)})
    else:
        _print_table(("rule", "accuracy (%)", "angle (deg)", "ms/step", "MB/step", "rate"), printed_league(table))
        typer.echo(f"table and figure: {folder}")


@app.command()
def report(
    context: typer.Context,
    results: Annotated[list[Path] | None, typer.Argument(metavar="[FOLDER|JSON]...", help="Runs to report.")] = None,
    output: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Write one HTML page on runs; without arguments, on all that is recorded in ./results."""
    from neuropil.atlas.report import write

    files = results or sorted(Path("results").glob("*.json"))
    if not files:
        raise ValueError("Nothing is recorded in ./results: name the folders of runs to report.")
    papers = {slug: asdict(paper) for slug, paper in context.obj.papers.items()}
    typer.echo(write(files, output, papers=papers))


@data_app.command("list")
def list_data(as_json: Json = False) -> None:
    """List the data sets."""
    from neuropil.data.catalog import catalogue

    sets = catalogue()
    if as_json:
        _print_json([asdict(info) for info in sets])
    else:
        rows = [(info.name, info.title, f"{info.samples:,}", info.where, info.licence) for info in sets]
        _print_table(("name", "title", "samples", "where", "licence"), rows)


@data_app.command("path")
def data_path(name: Name, as_json: Json = False) -> None:
    """Print the folder that has the files of a data set."""
    from neuropil.data.folders import locate

    folder = locate(name)
    if folder is None:
        raise ValueError(f"{name} has no folder here: it is embedded, or is still to come with neuropil data fetch.")
    _print_json({"name": name, "path": str(folder)}) if as_json else typer.echo(folder)


@data_app.command("fetch")
def fetch_data(name: Name, as_json: Json = False) -> None:
    """Download a data set, if it is not at hand, and print its folder."""
    from neuropil.data.fetching import fetch

    folder = fetch(name, progress=sys.stderr.isatty())
    _print_json({"name": name, "path": str(folder)}) if as_json else typer.echo(folder)


def _run_one(slug: str, with_report: bool, options: dict[str, Any]) -> tuple[list["Result"], list[Path | None]]:
    from neuropil.atlas.display import Display
    from neuropil.atlas.runner import run_study

    paper = options["library"].paper(slug)
    display = Display(paper, _console(), _console(stderr=True))
    result = run_study(slug, progress=display, **options)
    page = None
    if with_report and result.status == "complete" and result.folder:
        from neuropil.atlas.report import write

        try:
            page = write([result.folder], result.folder / "report.html", papers={slug: asdict(paper)})
        except (OSError, ValueError) as error:  # the run is whole, only its page is not
            _complain(f"no report: {error}", RAN)
    display.finish(result, page)
    return [result], [page]


def _run_several(slugs: Sequence[str], scheduler: str | None, options: dict[str, Any]) -> list["Result"]:
    from neuropil.atlas.display import one_line
    from neuropil.atlas.pool import run_many

    console = _console()
    return run_many(
        slugs, scheduler=scheduler, done=lambda result: console.print(one_line(result), soft_wrap=True), **options
    )


def _exit_code(results: Sequence["Result"], strict: bool) -> int:
    statuses = {result.status for result in results}
    if "interrupted" in statuses:
        return INTERRUPTED
    if "failed" in statuses:
        return FAILED
    false = any(claim.holds is False for result in results for claim in result.claims)
    return FALSE_CLAIM if strict and false else RAN


def _document(result: "Result", page: Path | None) -> dict[str, Any]:
    folder = None if result.folder is None else str(result.folder)
    return {**result.to_json(), "folder": folder, "report": None if page is None else str(page)}


def _pairs(changes: Sequence[str]) -> dict[str, str]:
    pairs = [change.partition("=") for change in changes]
    for (name, equals, _), change in zip(pairs, changes, strict=True):
        if not name or not equals:
            raise ValueError(f"--set needs KEY=VALUE, got {change!r}.")
    return {name: value for name, _, value in pairs}


def _with_value_of_resume(words: list[str]) -> list[str]:
    """`--resume` alone means `--resume latest`: typer has no options with an optional value."""
    if "--resume" not in words:
        return words
    place = words.index("--resume") + 1
    value = words[place] if place < len(words) else ""
    is_folder = value != "" and (Path(value).is_dir() or Path(value).name != value)
    return words if is_folder or value == "latest" else [*words[:place], "latest", *words[place:]]


def _console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, emoji=False)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def _complain(problem: object, code: int) -> int:
    typer.echo(f"neuropil: {' '.join(str(problem).split())}", err=True)
    return code
