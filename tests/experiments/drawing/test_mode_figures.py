import shutil

import pytest
from PIL import Image

from experiments.drawing.figures import FIGURES
from tests.experiments.runs import CONFIG, contents, run_main

pytestmark = pytest.mark.slow  # a whole run is drawn and evaluated


def test_mode_figures_draws_them_again_and_nothing_else_but_the_report(
    finished_run, tmp_path, capsys
):
    path = shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(path / "figures")
    run_main(CONFIG, f"--workdir={path}", "--mode=figures")
    printed = capsys.readouterr().out
    before, after = contents(finished_run), contents(path)
    assert set(after) == set(before)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"report.html"}
    for name in FIGURES:
        with Image.open(path / "figures" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
        assert f"wrote {path / 'figures' / name}.png" in printed


def test_page_has_the_probes(finished_run):
    page = (finished_run / "report.html").read_text()
    assert "tells the label from one layer alone" in page
