"""Runs the tests with the oldest versions that jebm allows, and with the newest.

    python -m tools.verify.versions [--output=docs/versions.md] [PYTEST_ARGUMENT ...]

For each of the two it makes a virtual environment of this Python in a temporary
directory, installs what setup.cfg requires (for "oldest" the lowest versions that it
names), and runs pytest from this checkout. It prints the versions and pytest's last
line; the exit code is 1 unless both pass.
"""

import argparse
import configparser
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from tools.arguments import path_argument

ROOT = pathlib.Path(__file__).parents[2]
TOLD = ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")
VERSIONS = """
import importlib.metadata, platform
print(platform.python_version(), *map(importlib.metadata.version, {packages}))
"""


def least_versions(text: str) -> list[str]:
    """Pins the least versions that a setup.cfg names, as pip constrains them.

    Example:
      >>> least_versions('''[options]
      ... install_requires =
      ...     jax >= 0.7.2
      ...     numpy
      ... ''')
      ['jax==0.7.2', 'jaxlib==0.7.2']
    """
    setup = configparser.ConfigParser()
    setup.read_string(text)
    pins = re.findall(
        r"^([\w-]+) *>= *([\w.]+)$", setup["options"]["install_requires"], re.M
    )
    pinned = [f"{name}=={version}" for name, version in pins]
    # Each jax goes with the jaxlib of its version; pip would take a newer one.
    return pinned[:1] + [f"jaxlib=={v}" for n, v in pins if n == "jax"] + pinned[1:]


def test(folder: pathlib.Path, pins: list[str], arguments: list[str]) -> dict:
    """Makes an environment in `folder`, and runs the tests in it."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in pins))
    install = ["-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    subprocess.run([python, *install, "--editable", f"{ROOT}[test]"], check=True)
    found = subprocess.run(
        [python, "-c", VERSIONS.format(packages=TOLD)],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    tests = subprocess.Popen(
        [python, "-m", "pytest", "-m", "", *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    last = ""
    for line in tests.stdout:
        print(line, end="", flush=True)
        last = line.strip(" =\n") or last
    passed = tests.wait() == 0
    return {"passed": passed, "last": last, "versions": found}


def document(results: dict, arguments: list[str]) -> str:
    """Formats the results as a page in Markdown."""
    command = " ".join(["python -m tools.verify.versions", *arguments])
    header = ["versions", "Python", *TOLD, "tests", "pytest says"]
    rows = [
        [
            name,
            *found["versions"],
            "pass" if found["passed"] else "**fail**",
            found["last"],
        ]
        for name, found in results.items()
    ]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        [
            "# Versions",
            "",
            f"Last result of `{command}`, of {time.strftime('%Y-%m-%d')}:",
            "",
            *(f"| {' | '.join(row)} |" for row in lines),
            "",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Tests both sets of versions, and prints the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=path_argument)
    given, arguments = parser.parse_known_args(argv)
    sets = {"oldest": least_versions((ROOT / "setup.cfg").read_text()), "newest": []}
    results = {}
    for name, pins in sets.items():
        with tempfile.TemporaryDirectory() as folder:
            print(f"{name}: {', '.join(pins) or 'no pins'}", flush=True)
            results[name] = test(pathlib.Path(folder), pins, arguments)
    text = document(results, arguments)
    print(text)
    if given.output:
        given.output.write_text(text)
    if not all(found["passed"] for found in results.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
