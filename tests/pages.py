"""Runs the Python of a Markdown page: its blocks one after the other, in one namespace.

A block with a title is a program of its own, of that name: it is written to the current
directory and run where jebm and flax cannot be imported.
"""

import contextlib
import pathlib
import re
import subprocess
import sys
import types
from typing import Any, NamedTuple

import jax

_BLOCK = re.compile(
    r"^```python(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE
)
_WITHOUT_JEBM = """
import runpy, sys
sys.modules |= {"jebm": None, "flax": None}
runpy.run_path(sys.argv[1], run_name="__main__")
"""


class Block(NamedTuple):
    """A block of Python."""

    title: str | None
    line: int  # where its code begins, the first line of the page being 1
    code: str


def blocks(page: pathlib.Path) -> list[Block]:
    """All blocks of Python of a page, in order."""
    text = page.read_text()
    return [
        Block(m[1], text.count("\n", 0, m.start(2)) + 1, m[2])
        for m in _BLOCK.finditer(text)
    ]


def run(page: pathlib.Path) -> dict[str, Any]:
    """Runs a page in the current directory; returns its names.

    Its classes can be imported, as those of a file can.
    """
    module = types.ModuleType(page.stem)
    sys.modules.setdefault(page.stem, module)
    names = vars(module)
    for block in blocks(page):
        if block.title is not None:
            pathlib.Path(block.title).write_text(block.code)
            process = subprocess.run(
                [sys.executable, "-c", _WITHOUT_JEBM, block.title],
                capture_output=True,
                text=True,
            )
            assert process.returncode == 0, process.stderr
        else:
            # At its lines of the page, for tracebacks to point there.
            code = "\n" * (block.line - 1) + block.code
            with _as_for_a_user():
                exec(compile(code, page, "exec"), names)
    return names


@contextlib.contextmanager
def _as_for_a_user():
    """Without the strictness of our own tests, which other libraries do not stand."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
