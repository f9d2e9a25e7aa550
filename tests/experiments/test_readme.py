"""What README.md and docs/ say can be done, can be done."""

import re

import numpy as np
import pytest

from tests import pages
from tests.experiments.runs import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# Libraries that a page is about; BlackJAX needs jax 0.9.
NEEDS = {
    "other_libraries.md": ("equinox", "haiku"),
    "samplers.md": ("blackjax", "numpyro"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if pages.blocks(p)], ids=lambda page: page.name
)
def test_code_of_a_page_runs(page, finished_run, tmp_path, monkeypatch):
    for library in NEEDS.get(page.name, ()):
        pytest.importorskip(library, reason=f"{page.name} is about {library}")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished_run)
    monkeypatch.chdir(tmp_path)
    names = pages.run(page)
    if page.name != "README.md":  # the others assert what they say
        return
    # Of the pretrained model.
    assert names["copies"].shape == (16, 8, 8, 1)
    assert 0 <= names["copies"].min() < names["copies"].max() <= 1
    assert names["scores"].shape == (16,)
    assert np.isfinite(names["scores"]).all()
    # Of the one that the page learns.
    assert names["state"].step == 300
    assert all(np.isfinite(value) for value in names["info"].values())
    assert names["x"].shape == (16, 8, 8, 1)
    assert 0 <= names["x"].min() < names["x"].max() <= 1
    assert [z.shape for z in names["z"]] == [(16, 8)] * 3


def test_a_page_that_is_wrong_is_told_by_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("One.\n\n```python\na = 1\n```\n\n```python\nassert a == 2\n```\n")
    with pytest.raises(AssertionError) as raised:
        pages.run(page)
    assert raised.traceback[-1].lineno + 1 == 8  # pytest counts from 0


def test_a_program_of_a_page_runs_without_jebm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text('```python title="program.py"\nimport jebm\n```\n')
    with pytest.raises(AssertionError, match="import of jebm halted"):
        pages.run(page)


def test_the_readme_is_short_and_begins_with_code():
    readme = ROOT / "README.md"
    assert len(readme.read_text().splitlines()) <= 180
    assert pages.blocks(readme)[0].line <= 35


def without_code(page):
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = without_code(page)
    linked = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)|src=\"([^\"]+)\"", text)
    files = [a or b for a, b in linked if not (a or b).startswith("http")]
    assert [f for f in files if not (page.parent / f).exists()] == []
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        other = page.parent / target if target else page
        assert anchor in anchors(other), (target, anchor)


def test_every_config_has_a_row_and_every_one_that_is_named_exists():
    text = (ROOT / "docs" / "experiments.md").read_text()
    configs = {p.stem for p in (ROOT / "experiments" / "configs").glob("*.py")}
    configs -= {"__init__", "default"}
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == sorted(configs)
    named = {
        name
        for page in PAGES
        for name in re.findall(r"configs/(\w+)\.py", page.read_text())
    }
    assert named <= configs | {"default", "NAME"}
