import hashlib
import shutil

import numpy as np
import pytest

from experiments.errors import ConfigError
from tests.tools.serving import serve
from tools.data import downloads

DATA = np.random.default_rng(0).bytes(3_000_000)
SIZE, SHA256 = len(DATA), hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with serve() as site:
        site.files["data.bin"] = DATA
        yield site


def fetch(site, path, size=SIZE, sha256=SHA256):
    downloads.fetch(f"{site.url}/data.bin", path, size, sha256)


def test_file_is_fetched_whole_and_not_again(site, tmp_path):
    path = tmp_path / "below" / "data.bin"
    fetch(site, path)
    fetch(site, path)
    assert path.read_bytes() == DATA
    assert site.requests == [("data.bin", None)]
    assert list(path.parent.iterdir()) == [path]


def test_connection_that_breaks_is_taken_up_where_it_broke(site, tmp_path):
    site.cut_after = [1_000_000, 500_000]
    fetch(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    ranges = [wanted for _, wanted in site.requests]
    assert ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_download_of_an_earlier_process_is_taken_up(site, tmp_path):
    (tmp_path / "data.bin.partial").write_bytes(DATA[:2_000_000])
    fetch(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA
    assert site.requests == [("data.bin", "bytes=2000000-")]


def test_server_that_cannot_resume_sends_all_of_it(site, tmp_path):
    site.resumes = False
    (tmp_path / "data.bin.partial").write_bytes(b"x" * 2_000_000)
    fetch(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_connection_that_never_brings_anything_ends_in_one_error(site, tmp_path):
    site.cut_after = [1000] + [0] * 100
    with pytest.raises(ConfigError, match=r"cannot be downloaded.*Run this again"):
        fetch(site, tmp_path / "data.bin")
    assert (tmp_path / "data.bin.partial").read_bytes() == DATA[:1000]  # to go on from
    assert len(site.requests) == 6


def test_server_that_is_not_there_ends_in_one_error(tmp_path, monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
    with serve() as gone:
        pass
    with pytest.raises(ConfigError, match=rf"{gone.url}.*by hand"):
        fetch(gone, tmp_path / "data.bin")


def test_missing_file_is_not_asked_for_again(site, tmp_path):
    del site.files["data.bin"]
    with pytest.raises(ConfigError, match="HTTP 404"):
        fetch(site, tmp_path / "data.bin")
    assert len(site.requests) == 1


@pytest.mark.parametrize("partial", [False, True])
def test_other_contents_are_refused_and_not_kept(site, tmp_path, partial):
    if partial:  # the rest of it is as published
        (tmp_path / "data.bin.partial").write_bytes(b"x" * 1_000_000)
    else:
        site.files["data.bin"] = DATA[:-1] + bytes([DATA[-1] ^ 1])
    with pytest.raises(ConfigError, match=rf"sha256.*the published file {SHA256}"):
        fetch(site, tmp_path / "data.bin")
    assert not list(tmp_path.iterdir())


def test_file_that_is_there_and_wrong_is_refused_by_name(site, tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(DATA[:-1])
    with pytest.raises(ConfigError, match=r"2,999,999 bytes, .* has 3,000,000"):
        fetch(site, path)
    assert path.read_bytes() == DATA[:-1]  # the user's


def test_file_that_is_too_long_is_refused(site, tmp_path):
    site.files["data.bin"] = DATA + b"more"
    with pytest.raises(ConfigError, match=r"3,000,004 bytes, .* has 3,000,000"):
        fetch(site, tmp_path / "data.bin")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_told_before_anything_is_fetched(site, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="10 bytes left, 3,000,000 needed"):
        fetch(site, tmp_path / "data.bin")
    assert not site.requests
