import numpy as np
import pytest

from experiments import options
from experiments.configs import test
from experiments.data import datasets, loaders
from experiments.rundir import data_note
from experiments.runtime.files import read_json
from tests.data_files import encoded, put, random_images

PICTURES = {f"{i:02}.png": encoded(p) for i, p in enumerate(random_images(60, (8, 8)))}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "pictures"
    put(path, PICTURES)
    return path


def data_of(folder):
    config = test.get_config()
    config.data.update(name="folder", data_dir=str(folder), image_shape=(8, 8, 1))
    return options.read(config).data


def load(folder):
    datasets.read.cache_clear()
    return datasets.load(data_of(folder))


def told(path, folder, capsys, splits=True):
    capsys.readouterr()
    data_note.warn(path, data_of(folder), load(folder) if splits else None)
    return capsys.readouterr().out


@pytest.fixture
def path(tmp_path, folder):
    """The directory of a run that has noted its images."""
    path = tmp_path / "run"
    path.mkdir()
    data_note.note(path, data_of(folder), load(folder), step=0)
    return path


def test_what_was_read_is_noted_with_counts(path, folder):
    [entry] = read_json(path / "data.json", list)
    splits = load(folder)
    assert entry["step"] == 0
    assert entry["files"]["num"] == 60
    for name, split in splits.items():
        assert entry[name]["num"] == len(split.images)
    assert 2 <= entry["test"]["num"] <= 12


def test_nothing_is_said_where_nothing_has_changed(path, folder, tmp_path, capsys):
    assert told(path, folder, capsys) == ""
    folder.rename(tmp_path / "moved")
    assert told(path, tmp_path / "moved", capsys) == ""


def test_run_of_an_older_version_is_told_to_have_held_out_others(path, folder, capsys):
    (path / "data.json").unlink()
    assert "an older version began" in told(path, folder, capsys)
    data_note.note(path, data_of(folder), load(folder), step=4)  # it was resumed
    assert "an older version began" in told(path, folder, capsys)
    digits = options.read(test.get_config()).data
    data_note.warn(path.parent, digits, datasets.load(digits))
    assert capsys.readouterr().out == ""


def test_one_picture_more_is_told_in_a_sentence(path, folder, capsys):
    put(folder, {"new.png": PICTURES["00.png"]})
    out = told(path, folder, capsys)
    assert f"the images have changed since step 0 of {path}: " in out
    assert "files: 60 then, 61 now" in out
    assert out.count("\n") == 1
    assert "files: 60 then, 61 now" in told(path, folder, capsys, splits=False)


def test_a_picture_of_the_same_name_and_size_but_other_pixels_is_told(
    path, folder, capsys
):
    sizes = {name: len(data) for name, data in PICTURES.items()}
    one, other = next(
        (a, b) for a in sizes for b in sizes if a < b and sizes[a] == sizes[b]
    )
    put(folder, {one: PICTURES[other]})
    assert "then and now, but different ones" in told(path, folder, capsys)


def test_streamed_images_are_known_by_names_and_sizes(
    path, folder, monkeypatch, capsys
):
    monkeypatch.setattr(loaders, "_IN_MEMORY", 0)
    assert told(path, folder, capsys) == ""  # pixels and names cannot be compared
    data_note.note(path, data_of(folder), load(folder), step=0)
    assert "pixels" not in read_json(path / "data.json", list)[0]["train"]
    assert told(path, folder, capsys) == ""
    put(folder, {"07.png": bytes(len(PICTURES["07.png"]))})  # is not noticed
    assert told(path, folder, capsys) == ""
    (folder / "07.png").rename(folder / "other.png")
    assert "files: 60 then and now, but different ones" in told(path, folder, capsys)


def test_what_is_read_from_a_later_step_on_is_noted_after_it(path, folder):
    def steps():
        return [entry["step"] for entry in read_json(path / "data.json", list)]

    data_note.note(path, data_of(folder), load(folder), step=4)
    assert steps() == [0]
    put(folder, {"new.png": PICTURES["00.png"]})
    data_note.note(path, data_of(folder), load(folder), step=4)
    assert steps() == [0, 4]
    data_note.note(path, data_of(folder), load(folder), step=0)  # began anew
    assert steps() == [0]


def test_labels_belong_to_what_is_read():
    images = np.zeros((3, 2, 2, 1), np.uint8)
    one, other = (
        {"train": loaders.Split(images, np.array(labels))}
        for labels in ([0, 0, 1], [0, 1, 1])
    )
    data = options.read(test.get_config()).data
    assert data_note.differences(
        data_note.identity(data, one), data_note.identity(data, other)
    ) == ["train: 3 then and now, but different ones"]
