"""The evaluators, by the names that `eval.protocol` chooses from."""

from experiments.errors import ConfigError
from experiments.evaluation import classifier
from experiments.evaluation.anomaly import Anomaly
from experiments.evaluation.contract import Evaluator
from experiments.evaluation.features import Features
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
    "features": Features,
    "likelihood": Likelihood,
    "ood": Ood,
    "paper": Paper,
}
AUTO = "auto"  # "classifier" of data sets that have one, else "features"


def protocol_of(named: str, data_name: str) -> str:
    """Returns the evaluator that `eval.protocol` stands for, of a data set.

    Example:
      >>> protocol_of("auto", "mnist"), protocol_of("auto", "folder")
      ('classifier', 'features')
      >>> protocol_of("ood", "mnist")
      'ood'
    """
    if named != AUTO:
        return named
    return "classifier" if data_name in classifier.known() else "features"


def create(experiment: Experiment) -> Evaluator:
    """Returns the evaluator that `eval.protocol` asks for; checks the options of all.

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
    protocol = protocol_of(experiment.eval.protocol, experiment.data.name)
    if protocol not in typed:
        known = {AUTO, *typed}
        raise ConfigError(unknown_name_message("eval.protocol", protocol, known))
    typed[protocol].check(experiment)
    return typed[protocol]


def _section(cls):
    """Names the evaluator's section in config.eval; "" where it has none."""
    return cls.SECTION.removeprefix("eval.")
