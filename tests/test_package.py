"""The package as a user gets it: what is in it, what it needs, how fast it starts."""

import email
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import yaml

import jebm

ROOT = pathlib.Path(jebm.__file__).parents[1]
PACKAGES = ("jebm", "experiments")  # whose types are checked


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory of wheel and source distribution, made of a copy of the tree."""
    tree = tmp_path_factory.mktemp("package") / "tree"
    tree.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(
        ROOT / "jebm", tree / "jebm", ignore=shutil.ignore_patterns("__pycache__")
    )
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            tree.parent,
            tree,
        ],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return tree.parent


@pytest.fixture(scope="module")
def wheel(built):
    (file,) = built.glob("*.whl")
    return file


def test_wheel_holds_the_library_and_its_data_and_nothing_else(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "jebm").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert names == expected
    assert {"jebm/py.typed", "jebm/pretrained/digits.npz"} <= names
    assert "jebm/pretrained/fashion_mnist.npz" in names
    assert wheel.name == f"jebm-{jebm.__version__}-py3-none-any.whl"


def test_wheel_is_small(wheel):
    sizes = {i.filename: i.file_size for i in zipfile.ZipFile(wheel).infolist()}
    for name in jebm.pretrained.names():
        assert sizes[f"jebm/pretrained/{name}.npz"] < 1_000_000
    assert wheel.stat().st_size < 2_000_000


def test_wheel_says_what_it_needs(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    about = email.message_from_bytes(archive.read(name))
    assert about["Requires-Python"] == ">=3.11"
    assert "Apache" in (about["License-Expression"] or about["License"])
    extras = set(about.get_all("Provides-Extra"))
    assert {"experiments", "convert", "tpu-aot", "docs", "test"} <= extras
    needed = {
        re.match(r"[\w-]+", r)[0]
        for r in about.get_all("Requires-Dist")
        if "extra ==" not in r
    }
    assert needed == {"jax", "flax", "jaxtyping", "numpy", "orbax-checkpoint"}
    licences = [n for n in archive.namelist() if n.endswith("LICENSE")]
    assert len(licences) == 1


def test_conda_recipe_asks_for_what_the_wheel_needs(wheel):
    recipe = yaml.safe_load((ROOT / "tools" / "conda" / "recipe.yaml").read_text())
    archive = zipfile.ZipFile(wheel)
    (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    about = email.message_from_bytes(archive.read(name))
    needed = {r for r in about.get_all("Requires-Dist") if "extra ==" not in r}
    needed.add("python" + about["Requires-Python"])
    run = {r.replace(" ", "") for r in recipe["requirements"]["run"]}
    assert run == {r.replace(" ", "") for r in needed}
    assert recipe["context"]["version"] == jebm.__version__
    assert recipe["about"]["summary"] == about["Summary"]
    licence = about["License-Expression"] or about["License"]
    assert recipe["about"]["license"] == licence


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == jebm.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## {jebm.__version__}\n" in changes


def test_source_distribution_builds_what_the_wheel_holds(built, wheel):
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    library = {n for n in zipfile.ZipFile(wheel).namelist() if n.startswith("jebm/")}
    assert library | {"LICENSE", "README.md", "setup.cfg", "pyproject.toml"} <= names


_FIRST_USE = """
import sys, time
started = time.process_time()
import jebm
seconds = time.process_time() - started
slow = {"orbax", "tensorflow", "optax", "matplotlib", "clu", "ml_collections", "grain"}
import jax, json
model, params = jebm.load_pretrained("digits")
x = jebm.sample(jax.random.key(0), model, params, 4).x
print(json.dumps({
    "file": jebm.__file__, "seconds": seconds, "slow": sorted(slow & set(sys.modules)),
    "shape": x.shape, "low": float(x.min()), "high": float(x.max()),
}))
"""


@pytest.mark.slow
def test_unpacked_wheel_starts_fast_and_samples_at_once(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)

    def use():
        process = subprocess.run(
            [sys.executable, "-c", _FIRST_USE],
            capture_output=True,
            text=True,
            cwd=tmp_path,  # the first place that is searched
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    runs = [use(), use()]
    assert pathlib.Path(runs[0]["file"]).is_relative_to(tmp_path)
    assert runs[0]["slow"] == []
    assert runs[0]["shape"] == [4, 8, 8, 1]
    assert 0 <= runs[0]["low"] < 0.1 < 0.9 < runs[0]["high"] <= 1
    # Of processor time, so that a busy machine does not count; the second start has
    # its files in memory.
    assert min(run["seconds"] for run in runs) < 2


def test_types_are_sound(tmp_path):
    """Of both packages, and of a program that uses the library wrongly twice."""
    program = tmp_path / "program.py"
    program.write_text(
        "import jax\nimport jebm\n"
        "model, params = jebm.load_pretrained('digits')\n"
        "samples = jebm.sample(jax.random.key(0), model, params, 4)\n"
        "x, z = samples.x, samples.latents\n"
        "jebm.sample(jax.random.key(0), model, params, '4')\n"  # line 6
        "samples.images\n"  # line 7
    )
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", tmp_path, *PACKAGES, program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["mypy"]["packages"] == [*PACKAGES]
    lines = [x for x in process.stdout.splitlines() if ": error:" in x]
    wrong = [re.search(r"program\.py:(\d+): error:.*\[([\w-]+)\]$", x) for x in lines]
    assert all(wrong), process.stdout
    assert [(int(m[1]), m[2]) for m in wrong] == [(6, "arg-type"), (7, "attr-defined")]


def test_version_is_the_same_wherever_it_is_told():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.MULTILINE)[1] == jebm.__version__
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == jebm.__version__
