"""The site builds without a warning, and its generated pages hold what the code has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from doc_pages import ROOT

from rlhf_lab import cli, maths
from rlhf_lab.config import Config
from rlhf_lab.workbench.experiments.files import ChainFile
from rlhf_lab.workbench.glossary import GLOSSARY
from rlhf_lab.workbench.stages import STAGES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", str(folder / "read"), "-b", "html"]
    done = subprocess.run([*command, str(ROOT / "docs"), str(folder / "html")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def page(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def section(soup: BeautifulSoup, heading: str) -> Tag:
    """The section under the heading of that text."""
    for tag in soup.find_all(["h2", "h3"]):
        if tag.get_text().removesuffix("¶") == heading:
            return tag.parent
    raise AssertionError(f"no section {heading}")


def keys(soup: BeautifulSoup, heading: str) -> set[str]:
    """The first column of the section's own table."""
    table = section(soup, heading).find("table", recursive=True)
    return {row.td.get_text() for row in table.find_all("tr") if row.td}


@pytest.mark.parametrize("stem", STAGES)
def test_every_key_of_a_stage_is_on_the_page_of_settings(site, stem):
    soup = page(site, "config")
    found = keys(soup, stem)
    for base in STAGES[stem].__mro__[1:]:
        if issubclass(base, Config) and base is not Config and vars(base).get("__annotations__"):
            found |= keys(soup, base.__name__)
    assert set(STAGES[stem].model_fields) <= found


def test_the_experiment_file_is_on_the_page_of_settings(site):
    assert keys(page(site, "config"), "ChainFile") == set(ChainFile.model_fields)


def test_a_key_has_its_type_bounds_default_and_words(site):
    rows = section(page(site, "config"), "KLConfig").find_all("tr")
    row = next(row for row in rows if row.td and row.td.get_text() == "kl_coef")
    assert [cell.get_text() for cell in row.find_all("td")] == [
        "kl_coef",
        "number, ≥ 0",
        "0.05",
        "nats to reward; the first one where a controller moves it",
    ]


def test_every_metric_is_on_the_page_of_metrics(site):
    soup = page(site, "glossary")
    for name, metric in GLOSSARY.items():
        text = " ".join(section(soup, name).get_text().split())
        assert metric.formula in text
        assert metric.words.replace("`", "") in text
        assert metric.otherwise.replace("`", "") in text


def test_every_command_and_option_is_on_the_page_of_commands(site):
    soup = page(site, "cli")
    commands = next(action for action in cli._parser()._actions if action.choices).choices
    assert commands
    for name, parser in commands.items():
        shown = {code.get_text().split()[0] for code in section(soup, f"rlhf-lab {name}").select("table code")}
        options = {option for action in parser._actions for option in action.option_strings}
        assert options - {"-h", "--help"} <= shown, name


def test_the_functions_of_the_mathematics_show_their_shapes(site):
    soup = page(site, "api/maths")
    shaped = [getattr(maths, name) for name in maths.__all__ if "Shapes: " in (getattr(maths, name).__doc__ or "")]
    assert len(shaped) > 10
    for thing in shaped:
        entry = soup.find("dt", id=f"{thing.__module__}.{thing.__name__}").find_next_sibling("dd")
        assert entry.find("strong", string="Shapes"), thing.__name__


def test_no_docstring_comes_out_garbled(site):
    for file in sorted((site / "api").glob("*.html")):
        soup = BeautifulSoup(file.read_text(encoding="utf-8"), "html.parser")
        assert soup.select(".problematic, .system-message") == []
        for code in soup.select("code, pre, dt"):
            code.decompose()
        marks = [text for text in soup.article.stripped_strings if "`" in text]
        assert marks == [], file.name


def test_a_page_needs_no_network(site):
    foreign = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["'](?:\w+:)?//[^"']*""")
    for file in site.rglob("*.html"):
        assert foreign.findall(file.read_text(encoding="utf-8")) == [], file.name


def test_formulas_are_drawn(site):
    assert page(site, "howto/own_method").select_one("div.equation svg path")
