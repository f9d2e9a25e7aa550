"""Fetches files: resumable, verified by size and sha256, with a progress bar."""

import hashlib
import http.client
import pathlib
import shutil
import time
import urllib.error
import urllib.request

from tqdm import tqdm

from experiments.errors import ConfigError

_TRIES = 5  # without any progress
_TIMEOUT = 60  # seconds without a byte
_CHUNK = 2**20


def fetch(url: str, path: pathlib.Path, size: int, sha256: str) -> None:
    """Downloads `url` to `path`, from where an earlier attempt was interrupted.

    PATH.partial holds what has come so far; `path` itself is whole and verified. A file
    that is there and right is not fetched again.

    Args:
      url: http, https or file.
      path: of the file to be.
      size: bytes.
      sha256: of the whole file, hexadecimal.

    Raises:
      ConfigError: if the download fails, or the file is not the published one.
    """
    if path.is_file():
        verify(path, size, sha256)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    missing = size - _have(partial)
    free = shutil.disk_usage(path.parent).free
    if free < missing:
        raise ConfigError(f"{path.parent} has {free:,} bytes left, {missing:,} needed")
    fruitless = 0
    with tqdm(
        total=size, unit="B", unit_scale=True, desc=path.name, disable=None
    ) as bar:
        while (have := _have(partial)) < size:
            bar.n = have
            try:
                _append(url, partial, bar)
                reason = "the connection ended early"
            except urllib.error.HTTPError as error:
                raise ConfigError(_by_hand(url, path, f"HTTP {error.code}")) from error
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
            fruitless = 0 if _have(partial) > have else fruitless + 1
            if fruitless == _TRIES:
                raise ConfigError(_by_hand(url, path, reason))
            if fruitless:
                time.sleep(2 ** (fruitless - 1))
    try:
        verify(partial, size, sha256)
    except ConfigError:
        partial.unlink()  # to go on from it would never end well
        raise
    partial.rename(path)


def verify(path: pathlib.Path, size: int, sha256: str) -> None:
    """Refuses a file of another size or sha256.

    Raises:
      ConfigError: naming the file, what it has and what it should have.
    """
    if (found := path.stat().st_size) != size:
        raise ConfigError(
            f"{path} has {found:,} bytes, and the published file has {size:,}: delete "
            "it, and run this again to download it"
        )
    digest = hashlib.sha256()
    with (
        path.open("rb") as opened,
        tqdm(
            total=size, unit="B", unit_scale=True, desc=f"sha256 of {path.name}",
            disable=True if size < 2**26 else None,
        ) as bar,
    ):  # fmt: skip
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != sha256:
        raise ConfigError(
            f"{path} has sha256 {digest.hexdigest()}, and the published file {sha256}: "
            "delete it, and run this again to download it"
        )


def _have(partial):
    return partial.stat().st_size if partial.is_file() else 0


def _append(url, partial, bar):
    """Appends what is missing; starts again if the server cannot resume."""
    have = _have(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        resumed = have and response.status == 206
        if not resumed:
            bar.n = 0
        with partial.open("ab" if resumed else "wb") as opened:
            while chunk := response.read(_CHUNK):
                opened.write(chunk)
                bar.update(len(chunk))


def _by_hand(url, path, reason):
    return (
        f"{url} cannot be downloaded: {reason}. Run this again to go on from here, or "
        f"put the file at {path} by hand"
    )
