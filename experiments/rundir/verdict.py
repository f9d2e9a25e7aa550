"""Says at a glance whether a run is sound, how near its samples are, what to change.

The sentences follow docs/howto.md, and the numbers those that the run has: metrics of
training, and distances of eval.json.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.rundir.evaluations import Evaluation

WIDE_GAP = 5.0  # nats; sound runs of the configs stay below
ALIKE = 1.2  # ratio of two distances that a longer chain may change
HALF = 0.5  # of the way from the Gaussian prior to the floor


class Finding(NamedTuple):
    """One sentence about a run, and what to do about it where it is not good."""

    good: bool
    text: str
    advice: str = ""


def findings(
    lines: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
    settings: Mapping[str, Any],
) -> list[Finding]:
    """Returns what can be said of a run by its metrics and its own evaluations.

    Args:
      lines: of metrics.jsonl.
      evaluations: those with other chains or seeds than the run's own say nothing here.
      settings: of config.json; what they have already is not advised.

    Example:
      >>> lines = [{"step": 50, "energy_gap_nats": 1.2}]
      >>> measured = {"frechet": 2.0, "frechet_untilted": 10.0, "frechet_posterior": 1.0}
      >>> for finding in findings(lines, [Evaluation("", measured, [])], {}):
      ...     print(finding.good, finding.text)
      True Training never diverged, and prior and posterior samples ended 1.2 nats apart.
      True The energy takes samples 89% of the way from the Gaussian prior (distance 10) to the floor (1): they are at 2.
    """  # noqa: E501
    found = list(_training(lines))
    for evaluation in evaluations:
        if not evaluation.variant and "frechet" in evaluation.values:
            found += _samples(evaluation.values)
            found += _laws(evaluation.values, _better_chains(settings))
            break
    for evaluation in evaluations:
        if not evaluation.variant and "prevalence" in evaluation.values:
            found.append(_detection(evaluation.values))
    return found


def _training(lines) -> Iterator[Finding]:
    """Tells of divergence, and of the gap over the last tenth of the steps."""
    rollbacks = sum("rollback" in line for line in lines)
    found = (line.get("energy_gap_nats") for line in lines)
    gaps = [gap for gap in found if gap is not None]  # what is not finite is null
    if rollbacks:
        times = "once" if rollbacks == 1 else f"{rollbacks} times"
        yield Finding(
            False,
            f"Training diverged and went back {times}.",
            "Raise learning.gradient_penalty or lower learning.energy_lr, and train "
            "in a new --workdir.",
        )
    if not gaps:
        return
    gap = statistics.median(gaps[-max(1, len(gaps) // 10) :])
    if abs(gap) > WIDE_GAP:
        yield Finding(
            False,
            f"Prior and posterior samples ended {abs(gap):.3g} nats apart, where sound "
            f"runs stay within {WIDE_GAP:g}.",
            "Train for longer (learning.num_steps), or lower learning.energy_lr.",
        )
    elif not rollbacks:
        yield Finding(
            True,
            f"Training never diverged, and prior and posterior samples ended "
            f"{abs(gap):.2g} nats apart.",
        )


def _detection(values) -> Finding:
    """Tells how well the score finds the class that training has not seen."""
    auprc, chance = values["auprc"], values["prevalence"]
    text = (
        f"The score finds class {values['heldout_class']}, which training has not "
        f"seen, with an AUPRC of {auprc:.3f} (chance: {chance:.3f}) and an AUROC of "
        f"{values['auroc']:.3f}."
    )
    if auprc > (1 + chance) / 2:
        return Finding(True, text)
    return Finding(False, text, "See docs/anomaly.md for weights and generators.")


def _samples(values) -> Iterator[Finding]:
    """Tells how much of the Gaussian prior's distance the energy removes."""
    names = ("frechet", "frechet_untilted", "frechet_posterior")
    if not all(name in values for name in names):
        return
    tilted, untilted, floor = (values[name] for name in names)
    if untilted <= floor:
        return
    share = (untilted - tilted) / (untilted - floor)
    if share <= 0:
        yield Finding(
            False,
            f"The energy does not help: its samples are at a distance of {tilted:.4g}, "
            f"those of the Gaussian prior at {untilted:.4g}.",
            "Train for longer (learning.num_steps), or lower learning.energy_lr.",
        )
        return
    yield Finding(
        share >= HALF,
        f"The energy takes samples {share:.0%} of the way from the Gaussian prior "
        f"(distance {untilted:.4g}) to the floor ({floor:.4g}): they are at "
        f"{tilted:.4g}.",
        "" if share >= HALF else "Train for longer, or make energy.widths larger.",
    )


def _laws(values, better_chains) -> Iterator[Finding]:
    """Tells whether longer chains, and the exact law, draw as near."""
    own, long = values["frechet"], values.get("frechet_long_chain")
    if long is not None and long > ALIKE * own:
        yield Finding(
            False,
            f"A chain 4 times as long draws farther away ({long:.4g}): the energy has "
            "learned the law of its short chain.",
            better_chains,
        )
    elif long is not None and own > ALIKE * long:
        yield Finding(
            False,
            f"A chain 4 times as long draws nearer ({long:.4g}).",
            "Sample with a larger chains.prior.num_steps.",
        )
    elif long is not None:
        yield Finding(
            True, f"The chain is long enough: 4 times as many steps give {long:.4g}."
        )
    exact = values.get("frechet_exact")
    if exact is not None and exact > ALIKE * own:
        yield Finding(
            False,
            f"The density itself is farther away ({exact:.4g}) than the samples of the "
            "run's chain: scores and log Z are of another law than the pictures.",
            better_chains,
        )


def _better_chains(settings) -> str:
    """Advises what brings the law of the chain in training nearer to the density."""
    chain = settings.get("chains", {}).get("prior", {}).get("name", "langevin")
    learning, missing = settings.get("learning", {}), []
    if not learning.get("persistent_chains"):
        missing.append("learning.persistent_chains")
    if chain == "langevin":
        missing.append("tested steps (chains.prior.name=underdamped)")
    if missing:
        return f"Train with {' and '.join(missing)}."
    return "Train for longer (learning.num_steps), or raise learning.persistent_steps."
