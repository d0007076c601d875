# ruff: noqa: RUF001 - minus signs and en dashes are meant
import copy
import html
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.figure
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.atlas import report
from neuropil.atlas.report import numbers
from neuropil.atlas.report.strip import WIDTH, strip, threshold_of

HOSTILE = "<script>alert('x')</script> \"quoted\" & 日本語 \u202e😀"
LONG = "W" * 400

CLAIM = {
    "text": "the exact rule matches backpropagation",
    "paper": "comparable",
    "measured": -0.412,
    "interval": [-0.713, -0.0911],
    "unit": "points",
    "threshold": "interval below 1.5",
    "baseline": "backpropagation, tuned",
    "holds": True,
    "note": None,
}
RESULT = {
    "schema": 1,
    "slug": "disinhibition",
    "title": "Dis-inhibitory circuits",
    "scale": "default",
    "seed": 3,
    "status": "complete",
    "error": None,
    "started": "2026-11-22T10:03:11+00:00",
    "seconds": 161.2,
    "settings": {"hidden": [256, 256], "learning_rate": 0.00031250001},
    "claims": [
        CLAIM,
        CLAIM | {"text": "the sign flips everywhere", "holds": False, "note": "Not below 2 Hz."},
        CLAIM | {"text": "robust to noise", "holds": None, "interval": [None, 2.6], "paper": None, "threshold": None},
    ],
    "tables": {"accuracy_by_rule": {"columns": ["rule", "accuracy"], "rows": [["exact", 0.98123], ["last", None]]}},
    "figures": ["accuracy.svg"],
    "data": [{"name": "mnist", "source": "https://example.org/mnist", "citation": "LeCun (1998)"}],
    "environment": {"torch": "2.13.0", "packages": {"scipy": "1.16"}},
}
PAPERS = {
    "disinhibition": {
        "title": "The paper",
        "authors": ["J. Rossbroich", "F. Zenke"],
        "year": 2023,
        "link": "https://example.org/paper",
        "summary": "How does a neuron know the sign of its error?",
    }
}


def with_changes(**changes):
    return copy.deepcopy(RESULT) | changes


def run_folder(parent, result=RESULT, name="run"):
    folder = parent / name
    (folder / "figures").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    for figure in result["figures"]:
        drawing = matplotlib.figure.Figure(figsize=(4, 3))
        drawing.subplots().plot([0, 1, 4])
        drawing.savefig(folder / "figures" / figure)
    return folder


class Page(HTMLParser):
    """Tags with their attributes, and the text of a page outside its style sheet."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.inside_style = [], "", False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside_style = tag == "style"

    def handle_endtag(self, tag):
        self.inside_style = False

    def handle_data(self, data):
        self.text += "" if self.inside_style else data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path)


def page_of(*results, **options):
    return Page(report.render(list(results), **options))


# what the page says


def test_a_result_is_told_in_full(folder):
    page = page_of(folder, papers=PAPERS)
    for text in [
        "Dis-inhibitory circuits",
        "J. Rossbroich, F. Zenke (2023)",
        "How does a neuron know",
        "interval below 1.5",
        "backpropagation, tuned",
        "−0.412\u202fpoints",
        "[−0.713, −0.091]",
        "(−∞, 2.6",
        "does not hold",
        "Not below 2 Hz.",
        "undecided",
        "accuracy by rule",
        "0.981",
        "0.00031250001",
        "LeCun (1998)",
        "packages scipy",
        "2\u202fmin 41\u202fs",
        "2026-11-22 10:03 UTC",
        "neuropil run disinhibition --scale default --seed 3",
    ]:
        assert text in page.text
    assert {"https://example.org/paper", "https://example.org/mnist"} <= {a["href"] for a in page.all("a")}


def test_a_reconstruction_is_called_one(folder):
    assert "our reconstruction" not in page_of(folder, papers=PAPERS).text
    paper = PAPERS["disinhibition"] | {"reading": "reconstruction"}
    assert "our reconstruction" in page_of(folder, papers={"disinhibition": paper}).text


def test_missing_values_are_dashes(tmp_path):
    empty = dict.fromkeys(CLAIM) | {"text": "nothing was measured"}
    page = report.render([run_folder(tmp_path, with_changes(claims=[empty]))])
    row = Page(page[page.index('data-label="Threshold"') : page.index('data-label="Verdict"')])
    assert re.sub(r"\s+", "", row.text.partition(">")[2]) == "–––"


def test_figures_are_images_with_a_name(folder):
    [image] = page_of(folder).all("img")
    assert image["src"].startswith("data:image/svg+xml;base64,")
    assert image["alt"] == "Figure of Dis-inhibitory circuits: accuracy"


def test_a_missing_figure_is_admitted(folder):
    (folder / "figures" / "accuracy.svg").unlink()
    page = page_of(folder)
    assert not page.all("img")
    assert "its file is missing" in page.text


def test_a_lone_result_file_has_no_figures(tmp_path):
    file = tmp_path / "disinhibition.json"
    file.write_text(json.dumps(RESULT))
    page = page_of(file)
    assert not page.all("img")
    assert "drawn into the run’s folder" in page.text


@pytest.mark.parametrize("status", ["failed", "interrupted", "running"])
def test_a_run_that_is_not_complete_says_so(tmp_path, status):
    page = page_of(run_folder(tmp_path, with_changes(status=status, error="the loss is NaN at step 3", claims=[])))
    assert [div["class"] for div in page.all("div") if div.get("role") == "note"] == [f"banner {status}"]
    assert "the loss is NaN at step 3" in page.text
    assert "No claim was measured." in page.text


def test_several_results_have_an_overview_that_leads_to_each(tmp_path):
    first = run_folder(tmp_path, name="first")
    other = run_folder(tmp_path, with_changes(slug="other", title="Other", status="failed", claims=[]), name="other")
    page = page_of(first, other, first)
    sections = [article["id"] for article in page.all("article")]
    assert sections == ["disinhibition", "other", "disinhibition-2"]
    assert [a["href"] for a in page.all("a") if a["href"] != "#overview"][:3] == [f"#{name}" for name in sections]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert re.search(r"All systems\s+✓ 2\s+✗ 2\s+\? 2\s", page.text)


@pytest.mark.parametrize("copies", [1, 3])
def test_headings_do_not_skip_a_level_and_tables_are_labelled(folder, copies):
    page = page_of(*[folder] * copies)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in cell for cell in page.all("th"))
    assert page.all("html") == [{"lang": "en"}]


def test_the_same_results_give_the_same_page(folder):
    assert report.render([folder], papers=PAPERS) == report.render([folder], papers=PAPERS)


# hostile text and outside requests


def hostile(tmp_path):
    claim = CLAIM | dict.fromkeys(("text", "paper", "unit", "threshold", "baseline", "note"), HOSTILE + LONG)
    table = {"columns": [HOSTILE, LONG, *"abcdefghijklmnop"], "rows": [[HOSTILE, LONG * 2, *range(16)]] * 3}
    result = with_changes(
        slug=f"{HOSTILE}{LONG}",
        title=HOSTILE + LONG,
        status="failed",
        error=HOSTILE + LONG * 3,
        settings={HOSTILE: LONG, LONG: HOSTILE},
        claims=[claim, CLAIM | {"text": "lone surrogate \ud800", "measured": 1e300, "interval": [-1e300, None]}],
        tables={HOSTILE: table, LONG: table},
        data=[{"name": HOSTILE, "source": "javascript:alert(1)", "citation": LONG}],
        environment={HOSTILE: {LONG: HOSTILE}},
    )
    return run_folder(tmp_path, result, "hostile")


def test_hostile_text_stays_text(tmp_path):
    link = {"link": "javascript:alert(1)", "title": HOSTILE, "summary": HOSTILE}
    page = page_of(hostile(tmp_path), papers={f"{HOSTILE}{LONG}": link})
    assert not page.all("script")
    assert page.text.count(HOSTILE) > 10
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_the_page_asks_for_nothing(folder, tmp_path):
    source = report.render([folder, hostile(tmp_path)], papers=PAPERS)
    for tag, attributes in Page(source).tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"):
            address = attributes.get(name, "#")
            assert address.startswith(("data:", "#")) or (tag == "a" and address.startswith("https://")), (tag, address)
    assert "default-src 'none'" in source
    style = source[source.index("<style>") : source.index("</style>")]
    assert not re.search(r"url\(|@import", style)


# the file


def test_write_returns_the_page_and_leaves_nothing_else(folder, tmp_path):
    output = report.write([folder], tmp_path / "new" / "report.html", papers=PAPERS)
    assert output == tmp_path / "new" / "report.html"
    assert output.read_text(encoding="utf-8") == report.render([folder], papers=PAPERS)
    assert list(output.parent.iterdir()) == [output]


def test_an_unencodable_character_does_not_stop_the_page(tmp_path):
    output = report.write([hostile(tmp_path)], tmp_path / "report.html")
    assert "lone surrogate ?" in output.read_text(encoding="utf-8")


def test_a_page_that_fails_leaves_the_old_one(folder, tmp_path, monkeypatch):
    output = report.write([folder], tmp_path / "report.html")
    before = output.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        report.write([run_folder(tmp_path, with_changes(title="new"), "new")], output)
    assert output.read_bytes() == before
    assert not list(tmp_path.glob(".report*"))


# errors name the file and what is wrong with it


def changed_claim(**changes):
    return with_changes(claims=[CLAIM, CLAIM | changes])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "holds a list, not a result"),
        (json.dumps(with_changes(schema=2)), "has schema 2; this version reads schema 1"),
        (json.dumps({k: v for k, v in RESULT.items() if k != "claims"}), "lacks claims"),
        (json.dumps(with_changes(seed=True)), "seed is true or false, expected a number or null"),
        (json.dumps(with_changes(status="done")), "status is 'done', expected one of running, complete"),
        (json.dumps(changed_claim(measured="0.9")), r"claims\[1\].measured is text, expected a number or null"),
        (json.dumps(changed_claim(interval=[1, 2, 3])), r"claims\[1\].interval must be two numbers"),
        (json.dumps(with_changes(claims=["it works"])), r"claims\[0\] is text, expected an object with text, paper"),
        (json.dumps(with_changes(data=[{"name": "mnist", "source": None}])), r"lacks data\[0\].citation"),
        (json.dumps(with_changes(figures=["../secret.svg"])), "expected the plain name of an SVG file"),
        (
            json.dumps(with_changes(tables={"t": {"columns": ["a", "b"], "rows": [[1, 2], [3]]}})),
            r"tables\['t'\].rows\[1\] must be a list of 2 cells",
        ),
    ],
)
def test_a_broken_result_is_named(tmp_path, text, message):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(ValueError, match=rf"broken\.json.*{message}"):
        report.render([tmp_path / "broken.json"])


def test_a_path_without_a_result_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is neither a run folder nor a result file: it does not exist"):
        report.render([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"it has no result\.json"):
        report.render([tmp_path])


def test_arguments_are_checked_before_any_work(folder, tmp_path):
    with pytest.raises(ValueError, match="results is empty"):
        report.write([], tmp_path / "report.html")
    with pytest.raises(ValueError, match="output is the folder"):
        report.write([folder], tmp_path)


# numbers and strips


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (-1.1e-16, "0"),
        (0.5, "0.5"),
        (-0.41234, "−0.412"),
        (98.76, "98.8"),
        (999.96, "1000"),
        (1234.5, "1234"),
        (25_600_000, "25\u202f600\u202f000"),
        (2_345_678.9, "2.35\u202f×\u202f10⁶"),
        (4.2e-5, "4.2\u202f×\u202f10⁻⁵"),
        (float("-inf"), "−∞"),
        (float("nan"), "NaN"),
    ],
)
def test_a_number_has_three_digits_and_no_noise(value, text):
    assert numbers.number(value) == text


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ([-0.4, -0.7, -0.1], ["−0.4", "−0.7", "−0.1"]),
        ([93.1, 93.08, 93.12], ["93.10", "93.08", "93.12"]),
        ([3.0, None, 7.0], ["3", "–", "7"]),
        ([0.2, 0.0004, 1e-17], ["0.2000", "0.0004", "0"]),
    ],
)
def test_an_estimate_and_its_interval_share_their_decimals(values, texts):
    assert numbers.aligned(values, distinct=True) == texts


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers()), min_size=1, max_size=5), st.booleans())
def test_numbers_are_printed_to_within_a_percent(values, distinct):
    for value, text in zip(values, numbers.aligned(values, distinct=distinct), strict=True):
        if value is None or not abs(value) < 1e300:
            continue
        plain = text.translate(str.maketrans("−⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "--0123456789")).replace("\u202f×\u202f10", "e")
        read_back = float(plain.replace("\u202f", ""))
        others = max(abs(x) for x in values if x is not None and abs(x) < float("inf"))
        assert read_back == pytest.approx(value, rel=0.01, abs=max(1e-12, 0.005 * others if len(values) > 1 else 0))


def test_durations_are_read_by_people():
    texts = [numbers.duration(seconds) for seconds in (None, 0.04, 3.21, 59.4, 59.9, 161.2, 3725)]
    assert [text.replace("\u202f", " ") for text in texts] == [
        "–",
        "0 s",
        "3.2 s",
        "59 s",
        "1 min 0 s",
        "2 min 41 s",
        "1 h 2 min",
    ]


def test_a_threshold_is_read_only_if_it_is_one_number():
    assert threshold_of("interval above 0", "points") == (0, 1)
    assert threshold_of("at most −2.5e-3 points", "points") == (-0.0025, -1)
    for text in [None, "above 5 of 10 seeds", "interval above chance", "below 5 %", "5"]:
        assert threshold_of(text, "points") is None


def test_a_strip_shows_the_interval_on_the_right_side():
    drawn = strip(7.0, [6.0, 8.0], "interval above 0", "points")
    assert drawn is not None and drawn.measured is not None
    assert 0 < drawn.threshold < drawn.low < drawn.measured < drawn.high < WIDTH
    assert drawn.passing == (drawn.threshold, WIDTH - drawn.threshold)
    unbounded = strip(0.3, [None, 2.6], "interval below 2", "points")
    assert unbounded is not None and unbounded.open_low and unbounded.low == 0
    assert unbounded.threshold < unbounded.high


@pytest.mark.parametrize("interval", [None, [None, None], [0.0, 0.0]])
def test_a_strip_that_would_say_nothing_is_not_drawn(interval):
    assert strip(0.0, interval, "interval above 0", "") is None


# looks


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_wcag_aa_contrast_in_light_and_dark(folder):
    style = report.render([folder])
    schemes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{[^}]*", style)
    ]
    for scheme in schemes[:2]:
        for ground, texts in {
            "page": ["text", "quiet", "link", "holds", "fails", "undecided"],
            "sunk": ["text", "quiet"],
            "fails-wash": ["text", "fails"],
            "undecided-wash": ["text", "undecided"],
        }.items():
            for text in texts:
                light, dark = sorted([luminance(scheme[ground]), luminance(scheme[text])], reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, text)


BROWSER = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
WIDTHS = (1280, 820, 390)


@pytest.mark.skipif(BROWSER is None, reason="neither chromium nor google-chrome is installed")
def test_page_in_a_browser(folder, tmp_path):
    """No horizontal scrolling of the page, whatever the text: frames of each width, measured after loading."""
    pages = [
        report.render([folder], papers=PAPERS),
        report.render([hostile(tmp_path)]),  # a single report has its tables open
        report.render([folder, tmp_path / "hostile"], papers=PAPERS),
    ]
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    script = """<script>onload = () => {
        document.title = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
            const page = frame.contentDocument.documentElement;
            const drawn = [...frame.contentDocument.images].every(image => image.naturalWidth > 0);
            return [frame.clientWidth, page.clientWidth, page.scrollWidth, drawn];
        }));
    }</script>"""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<!doctype html><meta charset=utf-8>{script}{frames}", encoding="utf-8", errors="replace")
    arguments = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    arguments += " --disable-background-networking --disable-component-update --virtual-time-budget=20000 --dump-dom"
    command = [BROWSER, *arguments.split(), f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    title = dom[dom.index("<title>") + len("<title>") : dom.index("</title>")]
    measured = json.loads(html.unescape(title))
    assert [width for width, *_ in measured] == [*WIDTHS] * len(pages)
    for _, available, needed, drawn in measured:
        assert available > 300
        assert needed <= available
        assert drawn
