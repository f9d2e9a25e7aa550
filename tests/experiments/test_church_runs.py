"""The one command of the LSUN card, from an LMDB to pictures."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import jebm
from experiments import main
from experiments.evaluation import evaluate
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import read_settings
from tests.data_files import encoded, write_lmdb
from tests.experiments.runs import ROOT, run_main

# What fits a core and a minute: a few channels, steps of a few images.
_LOG = {"every": 2, "checkpoint_every": 4, "sample_every": 4, "diagnose_every": 4}
_STAGE_ONE = {
    "backbone": {
        "groups": (1, 1), "latent_channels": 2, "width": 2, "encoder_width": 2,
        "image_halvings": 3, "preprocess_cells": 1, "postprocess_cells": 1,
        "encoder_cells": 1, "decoder_cells": 1, "num_flows": 0,
    },
    "learning": {
        "batch_size": 4, "num_steps": 4, "warmup_steps": 1, "kl_warmup_steps": 2,
        "spectral_penalty": 0.0,
    },
    "log": _LOG | {"num_samples": 4},
}  # fmt: skip
_FIELDS = {
    "energy.channels": 2, "energy.widths": "(4,)", "chains.prior.num_steps": 2,
    "learning.batch_size": 4, "learning.num_steps": 4, "learning.persistent_chains": 4,
    "learning.persistent_steps": 2, "eval.num_samples": 4, "eval.num_diagnosed": 4,
    "eval.batch_size": 4, "log.num_samples": 4,
    **{f"log.{name}": value for name, value in _LOG.items()},
}  # fmt: skip


def write_churches(folder, part, num):
    """An LMDB like LSUN's: walls before a sky, of several sizes, as webp."""
    rng = np.random.default_rng(num)
    values = []
    for _ in range(num):
        height, width = rng.integers(64, 100, 2)
        image = np.zeros((height, width, 3), np.uint8)
        image[:] = np.linspace(*rng.integers(100, 250, (2, 3)), height)[:, None]
        image[height // 2 :, width // 3 : -width // 3] = rng.integers(20, 200, 3)
        values.append(encoded(image, "webp", quality=90))
    folder.mkdir(parents=True, exist_ok=True)
    write_lmdb(folder / f"church_outdoor_{part}_lmdb", values)


# All of the command but the figures: that of a long chain takes minutes by itself.
_HOOKS = main.HOOKS._replace(end=evaluate.evaluate_if_possible)


@pytest.mark.slow
def test_one_command_goes_from_an_lmdb_through_both_stages_to_pictures(
    tmp_path, monkeypatch, capsys
):
    for part, num in (("train", 64), ("val", 16)):
        write_churches(tmp_path / "data" / "lsun", part, num)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    path, fields = tmp_path / "run", {"backbone.changes": _STAGE_ONE, **_FIELDS}
    run_main(
        f"--config={ROOT / 'experiments' / 'configs' / 'lsun.py'}",
        f"--workdir={path}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        hooks=_HOOKS,
    )
    screen = capsys.readouterr().out
    assert "FAKE" not in screen
    assert screen.splitlines()[-1] == f"Look at {path / 'report.html'}"
    for stage, kinds in ((path, ("ebm", "gaussian")), (path / "backbone", ())):
        lines = read_metrics(stage)
        assert [line["step"] for line in lines] == [2, 4]
        assert all(math.isfinite(line["loss_nats"]) for line in lines)
        for kind in (*kinds, "reconstruction"):
            with Image.open(stage / "samples" / f"{kind}_0000004.png") as picture:
                assert min(picture.size) >= 2 * 64
        found = json.loads((stage / "eval.json").read_text())
        assert (found["data"], found["step"]) == ("lsun/church_outdoor", 4)
        assert (stage / "report.html").is_file()
    [noted] = json.loads((path / "data.json").read_text())
    assert (noted["train"]["num"], noted["test"]["num"]) == (64, 16)
    groups = read_settings(path / "backbone")["backbone"]["groups"]
    model, _ = jebm.load(path)
    assert (groups, model.image_shape) == ([1, 1], (64, 64, 3))
    assert model.backbone.latent_shapes == ((8, 8, 2), (4, 4, 2))
