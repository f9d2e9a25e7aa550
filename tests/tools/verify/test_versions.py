import doctest
import subprocess
import sys

import pytest

from tools.verify import versions

SETUP = """
[options]
install_requires =
    jax >= 0.7.2
    flax >= 0.11.2
    numpy
"""


def test_example_of_the_docstring():
    assert doctest.testmod(versions).failed == 0


def test_the_least_versions_of_the_package_itself_are_pinned():
    text = (versions.ROOT / "setup.cfg").read_text()
    pins = dict(pin.split("==") for pin in versions.least_versions(text))
    assert pins["jaxlib"] == pins["jax"]
    assert {"jax", "jaxlib", "flax", "orbax-checkpoint"} == set(pins)


@pytest.fixture
def calls(monkeypatch):
    """The commands; pytest is one that fails where flax is pinned."""
    commands = []

    def run(command, **_):
        commands.append([str(part) for part in command])
        return subprocess.CompletedProcess(command, 0, "3.12.0 1 2 3 4 5")

    def popen(command, **kwargs):
        pinned = len([c for c in commands if "--editable" in c]) == 1
        program = f"print('== 1 passed in 2s =='); raise SystemExit({int(pinned)})"
        commands.append([str(part) for part in command])
        return original([sys.executable, "-c", program], **kwargs)

    original = subprocess.Popen
    monkeypatch.setattr(versions.subprocess, "run", run)
    monkeypatch.setattr(versions.subprocess, "Popen", popen)
    return commands


def test_a_failing_set_shows_in_page_and_exit(calls, tmp_path):
    page = tmp_path / "versions.md"
    with pytest.raises(SystemExit) as end:
        versions.main([f"--output={page}", "-q", "tests/jebm"])
    assert end.value.code == 1
    rows = page.read_text().splitlines()[-2:]
    assert (
        rows[0] == "| oldest | 3.12.0 | 1 | 2 | 3 | 4 | 5 | **fail** | 1 passed in 2s |"
    )
    assert rows[1] == "| newest | 3.12.0 | 1 | 2 | 3 | 4 | 5 | pass | 1 passed in 2s |"
    runs = [c for c in calls if "pytest" in c]
    assert [c[-2:] for c in runs] == [["-q", "tests/jebm"]] * 2
    assert len({c[0] for c in runs}) == 2  # each in an environment of its own
