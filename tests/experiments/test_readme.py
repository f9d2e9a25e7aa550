"""What README.md and docs/ say can be done, can be done."""

import re

import numpy as np
import pytest

from tests import pages
from tests.experiments.runs import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# Libraries that a page is about; BlackJAX needs jax 0.9.
NEEDS = {"samplers.md": ("blackjax", "numpyro")}


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
    assert names["x"].shape == (16, 8, 8, 1)
    assert 0 <= names["x"].min() < names["x"].max() <= 1
    assert [z.shape for z in names["z"]] == [
        (16, *shape) for shape in names["model"].backbone.latent_shapes
    ]
    # The last two lines are values of one number per image.
    for line in pages.blocks(page)[-1].code.strip().splitlines()[-2:]:
        values = eval(line, names)
        assert values.shape == (16,)
        assert np.isfinite(values).all()


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    linked = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text)
    files = [a or b for a, b in linked if not (a or b).startswith("http")]
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert [f for f in files if not (page.parent / f).exists()] == []
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_every_config_is_in_the_readme_and_every_one_there_exists():
    text = PAGES[0].read_text()
    configs = {p.stem for p in (ROOT / "experiments" / "configs").glob("*.py")}
    configs -= {"__init__", "default"}
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == configs
    named = {
        name
        for page in PAGES
        for name in re.findall(r"configs/(\w+)\.py", page.read_text())
    }
    assert named <= configs | {"default", "NAME"}
