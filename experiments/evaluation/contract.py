"""The contract of an evaluator: a file of this package, and a line in `EVALUATORS`.

An evaluator is a frozen dataclass. Its fields are its options, the section of
`config.eval` that `SECTION` names, with the defaults of `configs/default.py` or, where
the section is not there, its own. It measures an opened run, and returns a `Result`;
eval.json, the lines on the screen, the report page and the table of runs derive from
it, and know no evaluator.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from matplotlib.figure import Figure

from experiments.options import Experiment
from experiments.runs import Run
from experiments.section import Section

Number = float | bool | list[float]


class Table(NamedTuple):
    """A table for readers: the titles of its columns, and rows of cells.

    Where all rows have a title, it is their first cell.
    """

    head: list[str]
    rows: list[list[Any]]  # text and numbers; None: nothing was measured


class Drawing(NamedTuple):
    """A figure and what it shows, in a sentence."""

    figure: Figure
    caption: str


class Result(NamedTuple):
    """What was measured of a run."""

    numbers: Mapping[str, Number]  # those that are not finite are left out
    facts: Mapping[str, Any] = {}  # what they were taken with, as JSON
    about: str = ""  # says what was measured, in a sentence or two
    tables: tuple[Table, ...] = ()
    warnings: tuple[str, ...] = ()  # what speaks against the numbers, a sentence each
    figures: Mapping[str, Drawing] = {}  # by name, written to figures/NAME.png


@dataclasses.dataclass(frozen=True)
class Evaluator(Section):
    """One way to measure a run; see the module's docstring.

    Example of another one, with `jebm`, `dataclasses`, `Positive` of
    `experiments.section`, and `Evaluator`, `Result` and `Table` of here:

        @dataclasses.dataclass(frozen=True)
        class Brightness(Evaluator):
            '''The mean brightness of samples.'''

            SECTION = "eval.brightness"
            num_samples: Positive = 100

            def evaluate(self, key, run):
                x = jebm.sample(key, run.model, run.params, self.num_samples).x
                mean = float(x.mean())
                return Result(
                    {"brightness": mean},
                    {"num_samples": self.num_samples},
                    f"Mean brightness of {self.num_samples} samples.",
                    (Table(["", "brightness"], [["samples", mean]]),),
                )
    """

    # Its numbers always go to a file of their own, like eval_paper.json.
    OWN_FILE: ClassVar[bool] = False

    def check(self, experiment: Experiment) -> None:
        """Refuses settings that do not go together, before anything is trained.

        Raises:
          ConfigError: naming the field.
        """

    def lacks(self, experiment: Experiment) -> str:
        """Says what it would need and cannot have, in a sentence; "" for nothing.

        The run can be trained all the same.
        """
        del experiment
        return ""

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures the run; `key` is a typed key, []."""
        raise NotImplementedError

    def written(self, run: Run) -> None:
        """Clears up, when the numbers are in their file."""


def rows_of(
    numbers: Mapping[str, Number], titles: Mapping[str, str]
) -> list[list[Any]]:
    """Makes rows of two cells, title and number, of those that are there.

    Example:
      >>> rows_of({"a": 1.0, "c": 2.0}, {"a": "first", "b": "second"})
      [['first', 1.0]]
    """
    return [[title, numbers[name]] for name, title in titles.items() if name in numbers]
