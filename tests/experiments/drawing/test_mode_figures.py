import shutil

from PIL import Image

from experiments.drawing.figures import FIGURES
from tests.experiments.runs import CONFIG, contents, run_main


def test_mode_figures_draws_them_again_and_nothing_else_but_the_report(
    trained_run, tmp_path, capsys
):
    path = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(path / "figures")
    run_main(CONFIG, f"--workdir={path}", "--mode=figures")
    printed = capsys.readouterr().out
    before, after = contents(trained_run), contents(path)
    assert set(after) == set(before)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"report.html"}
    for name in FIGURES:
        with Image.open(path / "figures" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
        assert f"wrote {path / 'figures' / name}.png" in printed


def test_page_has_the_probes(trained_run):
    page = (trained_run / "report.html").read_text()
    assert "tells the label from one layer alone" in page
