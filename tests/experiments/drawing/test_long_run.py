import json

import numpy as np
import pytest

from experiments.drawing import long_run
from experiments.drawing.chains import Chains
from experiments.drawing.long_run import LongRun, plateau
from tests.experiments.drawing.made_up import grey

NAMES = ("before_nats", "last_nats", "standard_error_nats", "difference_in_sd")


@pytest.mark.slow
def test_long_run_json_compares_the_last_steps_with_those_before(drawn_run):
    run, _ = drawn_run
    values = json.loads((run.path / "figures" / "long_run.json").read_text())
    assert set(values) == set(NAMES)
    assert np.isfinite([values[name] for name in NAMES]).all()
    assert values["standard_error_nats"] > 0


def test_plateau_of_stationary_noise_is_flat_and_a_slope_is_seen():
    noise = np.random.default_rng(0).normal(size=(100, 256))
    flat = plateau(noise, 50)
    difference = flat["last_nats"] - flat["before_nats"]
    # Of 2 x 50 x 256 independent numbers; four standard errors of a mean difference.
    assert abs(difference) < 4 * np.sqrt(2 / (50 * 256))
    assert flat["standard_error_nats"] == pytest.approx(
        np.sqrt(2 / (50 * 256)), rel=4 / np.sqrt(2 * 255)
    )
    rising = plateau(noise + np.arange(100)[:, None] / 50, 50)
    assert rising["last_nats"] - rising["before_nats"] == pytest.approx(1 + difference)


def test_title_gives_the_change_and_a_line_the_steps_of_training():
    energies = np.random.default_rng(0).normal(size=(251, 5))
    chains = Chains(grey(8, 2), ("0", "2500"), energies, every=10)
    drawn = LongRun(chains, plateau(energies, 50) | {"difference_in_sd": -0.25}, 40)
    figure = long_run.draw(drawn)
    assert figure.axes[0].get_title() == (
        "2500 steps of the tilted prior's chain\nenergy of the last 500 minus that of "
        "the 500 before: -0.250 standard deviations"
    )
    assert list(figure.axes[1].lines[1].get_xdata()) == [40, 40]
    assert long_run.numbers(drawn) == drawn.plateau
