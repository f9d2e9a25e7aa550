import pathlib

import numpy as np
import pytest
from flax import traverse_util

from experiments.errors import ConfigError
from jebm.metrics import inception
from tools.convert import inception as convert_inception
from tools.verify import inception as verify_inception

FIXTURE = pathlib.Path(__file__).parent / "inception_fixture.npz"
SMALL = verify_inception.FIXTURE_REDUCTION


@pytest.fixture(scope="module")
def state():
    return verify_inception.random_state(SMALL, 0, "float32")


def test_names_and_shapes_are_those_of_the_published_network():
    shapes = verify_inception.published_shapes(1)
    assert len(shapes) == 94 * 5 + 2
    assert shapes["Conv2d_1a_3x3.conv.weight"] == (32, 3, 3, 3)
    assert shapes["Mixed_5b.branch_pool.conv.weight"] == (32, 192, 1, 1)
    assert shapes["Mixed_6b.branch7x7dbl_2.conv.weight"] == (128, 128, 7, 1)
    assert shapes["Mixed_6e.branch7x7_2.conv.weight"] == (192, 192, 1, 7)
    assert shapes["Mixed_7a.branch7x7x3_4.bn.running_var"] == (192,)
    assert shapes["Mixed_7c.branch3x3dbl_3b.conv.weight"] == (384, 384, 3, 1)
    assert shapes["fc.weight"] == (1008, 2048)
    assert sum(np.prod(shape) for shape in shapes.values()) == 23_885_392


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("fc.bias"), r"1 missing \['fc.bias'\]"),
        (lambda s: s.pop("Conv2d_1a_3x3.conv.weight"), "missing"),
        (lambda s: s.update(other=np.zeros(1)), r"1 unknown \['other'\]"),
        (
            lambda s: s.update({"fc.bias": np.full(63, np.inf)}),
            "fc.bias holds values that are not finite",
        ),
        (
            lambda s: s.update({"fc.bias": np.zeros(3)}),
            r"fc.bias has shape \(3,\) after .*, and Inception-v3 needs \(63,\)",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(state, change, words):
    state = dict(state)
    change(state)
    with pytest.raises(ConfigError, match=words):
        convert_inception.convert(state)


def test_download_is_whole_or_not_at_all(tmp_path):
    source, target = tmp_path / "source", tmp_path / "cache" / "file.pth"
    source.write_bytes(bytes(range(256)) * 10_000)
    convert_inception.download(source.as_uri(), target)
    assert target.read_bytes() == source.read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["file.pth"]
    missing = (tmp_path / "none").as_uri()
    with pytest.raises(ConfigError, match=r"cannot download .*: get that file") as told:
        convert_inception.download(missing, tmp_path / "other.pth")
    assert missing in str(told.value)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "other.pth").exists()


def test_file_that_is_not_the_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(convert_inception, "URL", (tmp_path / "source.pth").as_uri())
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "source.pth").write_text("hello")
    words = f"has the sha256 2cf24d.*, not {inception.PUBLISHED_SHA256}"
    for arguments in ([], [str(tmp_path / "source.pth")]):
        with pytest.raises(SystemExit, match=words):
            convert_inception.main(arguments)
    with pytest.raises(SystemExit, match="there is no file"):
        convert_inception.main([str(tmp_path / "none.pth")])
    assert not inception.default_file().exists()


def test_checkpoint_becomes_the_file_that_all_commands_read(
    state, tmp_path, monkeypatch, capsys
):
    torch = pytest.importorskip("torch", reason="checkpoints are PyTorch's")
    file = tmp_path / "weights.pth"
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    tensors["Mixed_5b.branch1x1.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save(tensors, file)
    sha256 = convert_inception.sha256_of(file)
    monkeypatch.setenv("JEBM_CACHE", str(tmp_path / "cache"))
    out = inception.default_file()
    convert_inception.main([str(file), f"--sha256={sha256}", f"--out={out}"])
    printed = capsys.readouterr().out
    assert f"wrote {out}: 472 tensors" in printed
    assert "1/16 of the channels" in printed
    network, variables, told = inception.load()
    assert (network.reduction, told) == (SMALL, sha256)
    expected = traverse_util.flatten_dict(convert_inception.convert(state)[1])
    found = traverse_util.flatten_dict(variables)
    assert all((found[path] == array).all() for path, array in expected.items())


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("evil"),))


def test_files_that_are_no_tensors_are_refused_and_run_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="checkpoints are PyTorch's")
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.bias": Evil()}, "evil.pth")
    torch.save([torch.zeros(2)], "list.pth")
    pathlib.Path("text.pth").write_text("hello")
    for name in ("evil.pth", "list.pth", "text.pth"):
        sha256 = convert_inception.sha256_of(pathlib.Path(name))
        with pytest.raises(SystemExit, match="is not a file of tensors"):
            convert_inception.main([name, f"--sha256={sha256}", "--out=out.npz"])
    assert not pathlib.Path("evil").exists()
    assert not pathlib.Path("out.npz").exists()
