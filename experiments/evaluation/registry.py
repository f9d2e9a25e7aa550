"""The evaluators, by the names that `eval.protocol` chooses from."""

from experiments.errors import ConfigError
from experiments.evaluation.anomaly import Anomaly
from experiments.evaluation.contract import Evaluator
from experiments.evaluation.fid import Clean, Paper
from experiments.evaluation.frechet import Frechet
from experiments.evaluation.likelihood import Likelihood
from experiments.evaluation.ood import Ood
from experiments.options import Experiment
from jebm.names import unknown_name_message

EVALUATORS: dict[str, type[Evaluator]] = {
    "anomaly": Anomaly,
    "classifier": Frechet,
    "clean": Clean,
    "likelihood": Likelihood,
    "ood": Ood,
    "paper": Paper,
}


def create(experiment: Experiment) -> Evaluator:
    """Returns the evaluator that `eval.protocol` names; checks the options of all.

    Raises:
      ConfigError: naming the field that is unknown or cannot work.
    """
    sections = experiment.eval.evaluators
    known = {_section(cls) for cls in EVALUATORS.values()} - {""}
    for name in sections:
        if name not in known:
            raise ConfigError(
                unknown_name_message("section of config.eval", name, known)
            )
    typed = {
        name: cls.of(sections.get(_section(cls), {}))
        for name, cls in EVALUATORS.items()
    }
    protocol = experiment.eval.protocol
    if protocol not in typed:
        raise ConfigError(unknown_name_message("eval.protocol", protocol, typed))
    typed[protocol].check(experiment)
    return typed[protocol]


def _section(cls):
    """The name of its section in config.eval; "" where it has none."""
    return cls.SECTION.removeprefix("eval.")
