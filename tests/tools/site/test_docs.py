"""The site of docs/: it builds without a warning, and holds what it should."""

import html
import os
import re
import subprocess
import sys

import pytest

import jebm
from tests.experiments.runs import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Where the site was built; a warning is an error."""
    path = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # of its theme, not of ours
    )
    assert process.returncode == 0, process.stderr
    assert "WARNING" not in process.stderr
    return path


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


@pytest.mark.slow
def test_every_config_has_its_page_with_command_and_settings(site):
    configs = {p.stem for p in (ROOT / "experiments" / "configs").glob("*.py")}
    configs -= {"__init__", "default"}
    pages = {p.stem for p in (site / "configs").glob("*.html")} - {"index"}
    assert pages == configs
    for name in configs:
        text = text_of(site / "configs" / f"{name}.html")
        assert f"--config=experiments/configs/{name}.py" in text
    text = text_of(site / "configs" / "mnist.html")
    assert re.search(r"learning\.num_steps\s+16000", text)
    assert "9 min" in text
    assert "energy.activation" not in text  # as in the default


def test_api_holds_every_public_name_with_its_docstring(site):
    page = (site / "api.html").read_text()
    for name in jebm.__all__:
        thing = getattr(jebm, name)
        where = getattr(thing, "__module__", None)
        path = f"{where}.{name}" if where else thing.__name__
        assert f'id="{path}"' in page, path
    text = re.sub(r"\s+", " ", text_of(site / "api.html"))
    assert "Draws images from the model." in text
    assert ">>> load_pretrained" in text or "load_pretrained(" in text


def test_examples_are_shown_as_code(site):
    page = (site / "api.html").read_text()
    assert "<blockquote>" not in page  # what >>> is to Markdown


def test_links_of_the_first_page_lead_somewhere(site):
    for page in (site / "index.html", site / "configs" / "mnist_ladder.html"):
        for target, anchor in re.findall(
            r'href="([^":#?]*\.html)?#([^"]+)"', page.read_text()
        ):
            other = page if not target else (page.parent / target).resolve()
            assert f'id="{anchor}"' in other.read_text(), (page.name, target, anchor)
