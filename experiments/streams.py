"""The streams of noise of a run, besides those of learning."""

import enum


class Stream(enum.IntEnum):
    """What noise is for: folded into the seed's key, so that no two roles share it.

    Other numbers are those of `jebm.learning.state.Role`.
    """

    PICTURES = 3
    FIGURES = 4
    DIAGNOSTICS = 5
    EVALUATION = 6
    WALKERS = 9
