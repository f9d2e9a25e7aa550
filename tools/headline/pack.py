"""Packs what is worth keeping of a run into one folder of a limited size.

kept/contents.json     what is here, its bytes, and what was left out for its size
kept/eval.json, ...    what was measured
kept/hardware.json     what it was trained on, how fast, and the share of its peak
kept/config.json, data.json, metrics.jsonl
kept/weights.npz       averaged parameters, see `weights`
kept/*.png             samples and reconstructions of the last step, and figures
kept/report.html       the page of the run
"""

import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import jebm
from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json
from jebm import checkpoints
from tools.headline import weights

LIMIT = 48 * 2**20  # bytes
_RESERVED = 64 * 2**10  # of the limit, for contents.json


def pack(
    run: pathlib.Path,
    kept: pathlib.Path,
    hardware: dict[str, Any],
    limit: int = LIMIT,
) -> dict[str, Any]:
    """Fills the folder `kept` anew, and returns what its contents.json holds.

    Files are taken in the order of their worth, and one that does not fit is left out.

    Args:
      run: the directory of a run.
      kept: absent, or what `pack` has made before, which is then replaced.
      hardware: what hardware.json is to hold.
      limit: bytes of the folder.

    Raises:
      ConfigError: if `kept` is anything else, which is left as it is.
    """
    if kept.exists() and not (kept / "contents.json").is_file():
        raise ConfigError(f"{kept} is no folder of packed results: move it away")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as made:
        folder, there = pathlib.Path(made, "kept"), pathlib.Path(made, "all")
        folder.mkdir()
        there.mkdir()
        write_json(there / "hardware.json", hardware)
        step = checkpoints.steps(run)[-1]
        model, params = jebm.load(run)
        weights.write(there, model, params, step)
        contents = _fill(folder, _ranked(run, there), limit - _RESERVED)
        write_json(folder / "contents.json", {"step": step, **contents})
        if kept.exists():
            shutil.rmtree(kept)
        folder.rename(kept)
    return read_json(kept / "contents.json")


def _ranked(run, made) -> Iterator[list[pathlib.Path]]:
    """Yields groups of files that belong together, the most worthy first."""
    yield [run / "config.json"]
    yield [run / "data.json"]
    yield [made / "hardware.json"]
    yield from ([file] for file in sorted(run.glob("eval*.json")))
    yield [made / "weights.json", made / "weights.npz"]
    yield [run / "metrics.jsonl"]
    yield from ([file] for file in newest(run / "samples"))
    yield from ([file] for file in sorted((run / "figures").glob("*.png")))
    yield [run / "report.html"]


def newest(samples: pathlib.Path) -> list[pathlib.Path]:
    """Returns the last picture of each kind, of those that are named KIND_STEP.png."""
    last = {file.stem.rsplit("_", 1)[0]: file for file in sorted(samples.glob("*.png"))}
    return [last[kind] for kind in sorted(last)]


def _fill(folder, groups, limit) -> dict[str, Any]:
    """Copies the groups that are there and fit; says which did, and which did not."""
    kept: dict[str, int] = {}
    left_out: dict[str, int] = {}
    for group in groups:
        sizes = {file.name: file.stat().st_size for file in group if file.is_file()}
        if sum(kept.values()) + sum(sizes.values()) > limit:
            left_out |= sizes
            continue
        kept |= sizes
        for file in group:
            if file.name in sizes:
                shutil.copyfile(file, folder / file.name)
    return {"bytes": kept, "left_out": left_out}
