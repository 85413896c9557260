"""The pilot's report: complete, self-contained, drawn in a real browser, with warnings where they are due."""

import dataclasses
import html.parser
import itertools
import json
import re
import shutil
import subprocess

import pytest
import torch
from places import DOCS

import multilevel_sde as mls
from multilevel_sde.pilots.answers import Calibration, Form
from multilevel_sde.pilots.report.facts import warnings
from multilevel_sde.pilots.report.figures import FIGURES
from multilevel_sde.pilots.report.page import write_report

pytest.importorskip("matplotlib")

TITLE = 'Levels <of> a "toy" & more'


@pytest.fixture(scope="module")
def pilot():
    problem = mls.problems.scaling_law(2.5, levels=4, diffusion=0.5)
    brownian = mls.BrownianPath(seeds=range(12))
    return mls.pilot(problem.ladder, problem.y0(12), problem.times(40), diffusion=0.5, brownian=brownian)


@pytest.fixture(scope="module")
def page(pilot, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(pilot, path, title=TITLE, measured=[("measured <x>", 10 * pilot.costs[-1], 1e-4)])
    return path


class _Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.elements, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone(page):
    parser = _Parser()
    parser.feed(page.read_text())
    assert not [tag for tag, _ in parser.elements if tag in ("script", "iframe", "img", "object")]
    links = [value for _, attrs in parser.elements for name, value in attrs.items() if name in ("src", "href")]
    links += [value for _, attrs in parser.elements for name, value in attrs.items() if name == "xlink:href"]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"@import|url\((?!#)", page.read_text())
    assert {attrs.get("id") for tag, attrs in parser.elements if tag == "svg"} == set(FIGURES)
    assert TITLE in parser.text
    assert sorted(file.name for file in page.parent.iterdir()) == ["report.html", "report.json"]


def test_the_page_and_the_json_agree(pilot, page):
    contents = json.loads(page.with_suffix(".json").read_text())
    parser = _Parser()
    parser.feed(page.read_text())
    assert contents["title"] == TITLE
    for text in [contents["summary"], *contents["warnings"], *(advice["text"] for advice in contents["advice"])]:
        assert text in parser.text
    assert [level["cost"] for level in contents["levels"]] == list(pilot.costs)
    assert len(contents["advice"]) == len(contents["plans"]) == 3
    assert contents["measured"] == [{"label": "measured <x>", "cost_in_top": 10.0, "mse": 1e-4}]
    assert torch.tensor(contents["variances"]).shape == (3, 40)


def test_the_numbers_are_the_pilots(pilot, page):
    contents = json.loads(page.with_suffix(".json").read_text())
    for advice, plan in zip(contents["advice"], contents["plans"], strict=True):
        best = pilot.plan(budget=advice["budget_in_top"] * pilot.costs[-1])
        assert plan["weights"] == best.plan.weights.T.tolist()
        assert plan["predicted_mse"] == best.predicted.mse
        assert plan["cost_in_top"] <= advice["budget_in_top"] * (1 + 1e-9)
    # One response, used everywhere: leaving out corrections k and above leaves the path of level k.
    omitted = torch.zeros(3, 40, dtype=torch.float64)
    omitted[1:] = 1.0
    expected = float(omitted.reshape(-1) @ pilot.gram @ omitted.reshape(-1)) ** 0.5
    assert contents["levels"][1]["alone"] == pytest.approx(expected)
    errors = [point["mse"] for point in contents["curve"]]
    assert all(b <= 1.05 * a for a, b in itertools.pairwise(errors))  # plans that differ by 5% count as alike
    assert errors[-1] < errors[0] / 10


def test_the_same_pilot_gives_the_same_page(pilot, page, tmp_path):
    write_report(pilot, tmp_path / "report.html", title=TITLE, measured=[("measured <x>", 10 * pilot.costs[-1], 1e-4)])
    assert (tmp_path / "report.html").read_text() == page.read_text()


def test_the_method_writes_it_too(pilot, tmp_path):
    pilot.report(tmp_path / "new" / "page.html")
    assert "<h1>Pilot report</h1>" in (tmp_path / "new" / "page.html").read_text()


def test_the_example_in_the_documentation_runs(tmp_path, monkeypatch):
    text = (DOCS / "pilot.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    assert names["solution"].stats.cost <= 400
    assert (tmp_path / "pilot.safetensors").exists()
    assert (tmp_path / "report.html").exists()


def test_a_page_may_not_be_its_own_json(pilot, tmp_path):
    with pytest.raises(ValueError, match=r'"path" is .*end it in .html'):
        write_report(pilot, tmp_path / "report.json")
    assert not list(tmp_path.iterdir())


def sound(pilot):
    """A pilot with nothing to warn about."""
    return dataclasses.replace(
        pilot,
        seconds=pilot.costs,
        kurtosis=(3.0, 3.0, 3.0),
        disagreement=1.0,
        calibration=(Calibration(pilot.rows, Form.TRACKED, 1.0, 1.0, 1.1, 1.0),),
    )


def test_no_warning_without_a_reason(pilot):
    assert warnings(sound(pilot)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"kurtosis": (3.0, 101.0, 3.0)}, "levels 3 and 2 has kurtosis 101"),
        (lambda p: {"variances": p.variances[:, [0, 0, 2]]}, "level 3 − 2 has mean square"),
        (lambda p: {"seconds": (p.costs[0] * 3.1, *p.costs[1:])}, "level 1 is 181 times cheaper, by the clock 58"),
        (lambda p: {"random_levels": (2,)}, "Level 3 gave another value when it was evaluated again"),
        (lambda p: {"disagreement": 3.5}, "Two halves of the samples disagree by a factor 3.5"),
        (
            lambda p: {"calibration": (Calibration(p.rows, Form.TRACKED, 1.0, 1.0, 1.1, 3.5),)},
            "3.5 times that of a typical sample",
        ),
        (
            lambda p: {"calibration": (Calibration(p.rows, Form.TRACKED, 1.0, 1.0, 8.2, 1.0),)},
            "prediction is more than 8 times too small",
        ),
        (lambda p: {"samples": 7}, "Only 7 samples"),
    ],
)
def test_warnings_name_what_is_wrong(pilot, change, message):
    found = warnings(dataclasses.replace(sound(pilot), **change(pilot)))
    assert len(found) == 1
    assert message in found[0]


def test_a_level_that_is_dearer_but_no_better_is_named():
    drifts = [lambda y, t: -y + 0.10 * torch.sin(3 * y), lambda y, t: -y + 0.11 * torch.sin(3 * y), lambda y, t: -y]
    ladder = mls.Ladder(drifts, costs=[1.0, 10.0, 100.0])
    found = warnings(mls.pilot(ladder, torch.linspace(-2, 2, 16)[:, None], torch.linspace(0.0, 1.0, 33)))
    assert any(text.startswith("Level 2 costs 10 times level 1 and ends no nearer") for text in found)


def chromium():
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("no Chromium on this machine: the report is not looked at in a browser")
    return [found, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]


def test_a_browser_draws_it_without_complaint(page, tmp_path):
    command = [*chromium(), f"--user-data-dir={tmp_path}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    broken = tmp_path / "broken.html"
    broken.write_text("<script>missing()</script>")
    control = subprocess.run([*command[:-1], broken.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" in control.stderr  # an error would have been seen
    for name in FIGURES:
        figure = done.stdout[done.stdout.index(f'id="{name}"') :]
        assert figure[: figure.index("</svg>")].count("<path") > 10
    measure = (
        "<script>onload=()=>{document.title=JSON.stringify([...document.querySelectorAll('svg.figure')].map(s=>"
        "[s.id,Math.round(s.getBoundingClientRect().width),Math.round(s.getBoundingClientRect().height)]).concat("
        "[['page',document.documentElement.scrollWidth-document.documentElement.clientWidth,0]]))}</script>"
    )
    probe = tmp_path / "probe.html"
    probe.write_text(page.read_text().replace("</body>", measure + "</body>"))
    command = [*chromium(), f"--user-data-dir={tmp_path}", "--window-size=1200,900", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    sizes = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout)[1]))
    assert sizes.pop() == ["page", 0, 0]  # nothing sticks out
    assert {name for name, *_ in sizes} == set(FIGURES)
    assert all(width > 350 and height > 200 for _, width, height in sizes)


def test_nothing_sticks_out_on_a_phone(page, tmp_path):
    measure = (
        "<script>onload=()=>{const root=document.documentElement;parent.document.title=JSON.stringify([innerWidth,"
        "root.scrollWidth,...[...document.querySelectorAll('svg.figure')].map(s=>s.getBoundingClientRect().right)])}"
        "</script>"
    )
    inner = html.escape(page.read_text().replace("</body>", measure + "</body>"))
    phone = tmp_path / "phone.html"
    phone.write_text(f'<iframe width="390" height="2000" style="border: 0" srcdoc="{inner}"></iframe>')
    command = [*chromium(), "--hide-scrollbars", f"--user-data-dir={tmp_path}", "--dump-dom", phone.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    width, content, *figures = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert width == content == 390
    assert len(figures) == len(FIGURES)
    assert max(figures) <= 390


def test_it_prints_on_paper(page, tmp_path):
    target = tmp_path / "report.pdf"
    command = [*chromium(), f"--user-data-dir={tmp_path}", f"--print-to-pdf={target}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert 2 <= len(re.findall(rb"/Type ?/Page\b", target.read_bytes())) <= 6
