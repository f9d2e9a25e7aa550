import json

import numpy as np
import pytest

from experiments.data import datasets
from experiments.data.loaders import LOADERS, Split
from experiments.data.pixels import digest, to_unit
from jebm import metrics
from jebm.metrics import inception
from tools.convert import inception as convert_inception
from tools.data import fid_stats
from tools.verify import inception as verify_inception


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Weights of a small network, and seven images."""
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    state = verify_inception.random_state(16, 0, "float32")
    _, variables = convert_inception.convert(state)
    inception.save(inception.default_file(), variables, "0123456789abcdef")
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    split = Split(images, np.zeros(7, int))
    monkeypatch.setitem(LOADERS, "seven", lambda _: {"train": split})
    yield tmp_path / "cache" / "statistics"
    datasets.read.cache_clear()


@pytest.mark.slow
def test_statistics_are_those_of_the_images_and_are_made_once(cache, tmp_path, capsys):
    other = tmp_path / "other.npz"
    np.savez(other, mu=np.zeros(128), sigma=np.eye(128))
    options = ["--data=seven", "--batch_size=4", f"--against={other}"]
    fid_stats.main(options)
    (file,) = cache.iterdir()
    images = LOADERS["seven"](None)["train"].images
    of_images = digest(images)[:16]
    assert file.name == f"seven_train_8x8_paper_{of_images}_inception01234567.npz"
    printed = capsys.readouterr().out
    assert f"wrote {file}" in printed

    network, variables, _ = inception.load()
    x = to_unit(LOADERS["seven"](None)["train"].images)
    x = inception.prepare(x, "bilinear")
    pool, logits = map(np.asarray, network.apply(variables, x))
    mean, covariance = metrics.feature_statistics(pool)
    with np.load(file) as arrays:
        np.testing.assert_allclose(arrays["mu"], mean, rtol=1e-4, atol=1e-6)
        # Of an untrained network: features of 1 differ by 1e-4, and float32 keeps
        # a thousandth of that.
        scale = np.abs(covariance).max()
        np.testing.assert_allclose(arrays["sigma"], covariance, atol=1e-2 * scale)
        order = np.random.default_rng(0).permutation(7)
        np.testing.assert_allclose(
            arrays["features"], pool[order], rtol=1e-3, atol=1e-5
        )
        about = json.loads(str(arrays["about"]))
    assert about["protocol"] == "paper"
    assert about["num_images"] == 7
    score = metrics.inception_score(logits[:, : 1000 // 16], 1).mean
    assert about["inception_score"] == pytest.approx(score, rel=1e-4)
    distance = metrics.frechet_distance(mean, covariance, np.zeros(128), np.eye(128))
    assert f"Frechet distance to {other}: {distance:.4g}" in printed

    before = file.read_bytes()
    fid_stats.main(options)
    assert f"{file} is there already" in capsys.readouterr().out
    assert file.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data=none"], "unknown data set 'none'; known"),
        (["--data=seven", "--split=test"], r"'test'; known: \['train'\]"),
        (["--data=seven", "--batch_size=3"], "multiple of the 2 devices, got 3"),
        (["--data=seven", "--inception=none.npz"], r"tools\.convert\.inception"),
        (["--data=seven", "--against=none.npz"], r"none\.npz is damaged or not"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(cache, options, words):
    with pytest.raises(SystemExit, match=words) as stopped:
        fid_stats.main(options)
    assert stopped.value.code.startswith("error: ")
    assert "\n" not in stopped.value.code
    assert not cache.exists()
