"""Learning rules of the joint EBM prior: see `learners`."""

from jebm.divergence import Limits, violated_limits
from jebm.learning.learners import maximum_likelihood, second_stage, variational
from jebm.learning.options import Options
from jebm.learning.state import Learner, LearnerState
from jebm.warm_up import WarmUp

__all__ = [
    "Learner",
    "LearnerState",
    "Limits",
    "Options",
    "WarmUp",
    "maximum_likelihood",
    "second_stage",
    "variational",
    "violated_limits",
]
