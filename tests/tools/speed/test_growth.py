"""How the cost of a step grows."""

import json

import jax
import pytest

from experiments.models import build_model
from tools.speed import growth


def test_networks_stay_as_they_are_when_one_number_varies():
    usual = {name: growth.USUAL[name] for name in ("layers", "batch", "side")}

    def shapes(**changed):
        sizes = usual | changed
        model = build_model(growth.experiment(**sizes), (sizes["side"],) * 2 + (3,))
        return model.backbone.latent_shapes, model.backbone.decoder_widths

    assert shapes(layers=30) == (((16,),) * 30, (64, 64, 64))
    assert shapes(side=128) == (((16,),) * 2, (64,) * 5)
    assert growth.experiment(**usual | {"batch": 4}).learning.batch_size == 4


def test_exponent_is_of_the_last_three_points():
    sizes = [1, 2, 4, 8]
    assert growth.exponent(sizes, [100.0, 4, 8, 16]) == pytest.approx(1)
    assert growth.exponent(sizes, [1.0, 5, 5, 5]) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_points_are_measured_on_as_many_devices_and_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "SIZES", {"devices": (1, 2)})
    monkeypatch.setitem(growth.USUAL, "side", 8)
    file, picture, page = (tmp_path / name for name in ("a.json", "a.png", "a.md"))
    page.write_text("\n\n".join(["# Speed", *growth.MARKS, "The end."]))
    growth.main(
        ["--repeats=1", f"--json={file}", f"--picture={picture}", f"--page={page}"]
    )
    found = json.loads(file.read_text())
    # A share of the batch of 64 on each device, and so about half the memory on two.
    one, two = (found["devices"][size]["bytes"] for size in "12")
    assert 0.4 * one < two < 0.7 * one
    assert all(point["seconds"] > 0 for point in found["devices"].values())
    table = capsys.readouterr().out
    assert "| devices | 1, 2 |" in table
    assert f"jax {jax.__version__}" in page.read_text()
    assert picture.stat().st_size > 5000


def test_point_that_fails_says_why():
    with pytest.raises(RuntimeError, match="devices 0"):
        growth.measure("devices", 0, 1)
