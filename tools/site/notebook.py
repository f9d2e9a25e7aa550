"""Runs notebooks of experiments/notebooks in place, and keeps what they show.

    python -m tools.site.notebook quickstart own_data
    python -m tools.site.notebook tpu_cifar10 --set=CONFIG=test
        --set=PROTOCOL=classifier

Each runs in a new temporary directory, top to bottom. --set gives a parameter of its
first code cell another value for the run, and does not change the cell. On
two cores the first command takes 4 minutes.
"""

import argparse
import base64
import io
import os
import pathlib
import sys
import tempfile

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "experiments" / "notebooks"


def run(path: pathlib.Path, settings: dict[str, str]) -> None:
    """Runs one notebook and writes it with its outputs; an error leaves it alone."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    written = cell.source
    cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=3600,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        client.execute()
    cell.source = written
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # the same picture
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.write(notebook, path)
    print(f"wrote {path}, {path.stat().st_size:,} bytes")


def smaller(png: str) -> str:
    """Reduces a picture, base64, to 64 colours: a quarter of the bytes of a figure."""
    content = io.BytesIO(base64.b64decode(png))
    picture = Image.open(content, formats=["PNG"]).convert("RGB")
    file = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main(argv: list[str]) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="+", choices=[p.stem for p in FOLDER.glob("*.ipynb")]
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    options = parser.parse_args(argv)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # for the kernel
    settings = dict(setting.split("=", 1) for setting in options.set)
    for name in options.names:
        run(FOLDER / f"{name}.ipynb", settings)


if __name__ == "__main__":
    main(sys.argv[1:])
