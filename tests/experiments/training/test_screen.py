"""What training says on the screen: the table of parameters, and the step lines."""

import types
from unittest import mock

import numpy as np
import pytest

import jebm
from experiments.training import screen

LATENTS = types.SimpleNamespace(latent_shapes=((4,),))
MODEL = types.SimpleNamespace(image_shape=(8, 8, 1), backbone=LATENTS, energy=None)


def overview(capsys, backbone, energy=None):
    """Lines of the table; each module of `backbone` and `energy` has so many arrays."""
    parts = [
        {"params": {n: {str(i): np.ones(10) for i in range(k)} for n, k in p.items()}}
        for p in (backbone, energy or {})
    ]
    screen.print_overview(MODEL, jebm.Params(*parts))
    return [line.split() for line in capsys.readouterr().out.splitlines()[3:]]


def test_a_table_of_twenty_rows_is_printed_whole(capsys):
    lines = overview(capsys, {"decoder": 19}, {"f1": 1})
    assert sum(line[:1] == ["|"] for line in lines) == 1 + 20  # with the heading
    assert any("backbone/params/decoder/18" in line for line in lines)


def test_a_longer_table_has_a_row_a_module_with_its_share(capsys):
    lines = overview(capsys, {"decoder": 15, "encoder": 5}, {"f1": 5})
    assert lines == [
        ["module", "parameters", "share"],
        ["backbone/decoder", "150", "60.0%"],
        ["backbone/encoder", "50", "20.0%"],
        ["energy/f1", "50", "20.0%"],
        ["total", "250", "100.0%"],
    ]


def test_numbered_modules_share_a_row_where_there_are_too_many(capsys):
    many = {f"cells_{i}": 1 for i in range(30)} | {"decoder": 10}
    lines = overview(capsys, many, {"f1": 1, "f2": 1})
    assert [line[0] for line in lines[1:]] == [
        "backbone/cells_*", "backbone/decoder", "energy/f1", "energy/f2", "total",
    ]  # fmt: skip
    assert lines[1][1] == "300"


def test_a_part_has_one_row_where_names_without_numbers_are_too_many(capsys):
    many = {f"cell{i}": 1 for i in range(30)}
    lines = overview(capsys, many, {"f1": 2})
    assert lines[1:-1] == [["backbone", "300", "93.8%"], ["energy", "20", "6.2%"]]


@pytest.mark.parametrize("gap", [True, False])
def test_successive_step_lines_stand_under_each_other(capsys, gap):
    progress = mock.Mock(disable=True, total=2000)
    rows = [(50, 121.0, 0.386, 119.0), (100, -1031.2, -12.5, 23588.4)]
    rows += [(2000, float("nan"), 2e10, 0.8)]
    for step, loss, difference, rate in rows:
        values = {"images_per_second": rate, "loss_nats": loss, "log_z_nats": 1.0}
        values |= {"energy_gap_nats": difference} if gap else {}
        screen.show(progress, step, values)
    lines = capsys.readouterr().out.splitlines()
    assert len(set(map(len, lines))) == 1
    for label in ("/2000", "loss", "images/s", *(["gap"] if gap else [])):
        assert len({line.index(label) for line in lines}) == 1
    assert ("gap" in lines[0]) == gap
    assert lines[0].split()[:4] == ["step", "50/2000", "loss", "121.00"]
    assert lines[1].split()[-1] == "23,588"


def test_a_bar_has_the_same_numbers_without_the_padding(capsys):
    progress = mock.Mock(disable=False, total=2000)
    values = {"loss_nats": 121.0, "energy_gap_nats": 0.5, "images_per_second": 119.0}
    screen.show(progress, 50, values)
    progress.set_postfix_str.assert_called_once_with(
        "loss 121.00 gap 0.500 images/s 119"
    )
    assert capsys.readouterr().out == ""
