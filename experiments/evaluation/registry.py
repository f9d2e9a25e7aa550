"""The evaluators, by the names that `eval.protocol` chooses from."""

from experiments.errors import ConfigError
from experiments.evaluation.contract import Evaluator
from experiments.options import Experiment
from jebm.names import unknown_name_message

EVALUATORS: dict[str, type[Evaluator]] = {}


def create(experiment: Experiment) -> Evaluator:
    """Returns the evaluator that `eval.protocol` names; checks the options of all.

    Raises:
      ConfigError: naming the field that is unknown or cannot work.
    """
    sections = experiment.eval.evaluators
    known = {cls.SECTION.removeprefix("eval.") for cls in EVALUATORS.values()}
    for name in sections:
        if name not in known:
            raise ConfigError(
                unknown_name_message("section of config.eval", name, known)
            )
    typed = {
        name: cls.of(sections.get(cls.SECTION.removeprefix("eval."), {}))
        for name, cls in EVALUATORS.items()
    }
    protocol = experiment.eval.protocol
    if protocol not in typed:
        raise ConfigError(unknown_name_message("eval.protocol", protocol, typed))
    typed[protocol].check(experiment)
    return typed[protocol]
