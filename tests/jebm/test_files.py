import pathlib

import pytest

from jebm.files import cache_directory, default_cache, written_whole


def test_a_file_is_whole_at_once_and_replaces_the_one_before(tmp_path):
    path = tmp_path / "values.npz"
    path.write_text("before")
    (tmp_path / "values.npz.partial").write_text("what a killed process has left")
    with written_whole(path) as partial:
        assert partial.parent == tmp_path
        partial.write_text("half")
        assert path.read_text() == "before"
        partial.write_text("all of it")
    assert path.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_file_as_it_was(tmp_path, error):
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(error), written_whole(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for name in ("JEBM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory() == default_cache() == tmp_path / ".cache" / "jebm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/of/the/user")
    assert cache_directory() == default_cache() == pathlib.Path("/of/the/user/jebm")
    monkeypatch.setenv("JEBM_CACHE", "/of/jebm")
    assert cache_directory() == pathlib.Path("/of/jebm")
    assert default_cache() == pathlib.Path("/of/the/user/jebm")
