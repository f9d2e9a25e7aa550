import jax
import numpy as np

from experiments.drawing import training
from experiments.drawing.common import ALARM, POSTERIOR, PRIOR
from experiments.drawing.training import Training
from experiments.rundir import curves
from tests.experiments.drawing.made_up import LINES, WENT_BACK, titles


def axis_of(figure, title):
    (axis,) = (axis for axis in figure.axes if axis.get_title().startswith(title))
    return axis


def test_curves_are_those_of_metrics_jsonl(run):
    assert training.compute(jax.random.key(0), run) == Training(LINES)


def test_panels_are_those_that_have_something_to_draw():
    drawn = [title for title in titles(training.draw(Training(LINES))) if title]
    assert drawn == [
        "log-likelihood of posterior samples",
        "energies",
        "stiffness (keep below .5)",
    ]


def test_curves_have_their_points_and_colours():
    axis = axis_of(training.draw(Training(LINES)), "energies")
    curves = {line.get_color(): line for line in axis.lines}
    assert list(curves[POSTERIOR].get_xdata()) == [2, 4, 6, 8]
    assert list(curves[PRIOR].get_xdata()) == [2, 4, 6, 8]
    # Not finite at 6: the curve breaks there.
    np.testing.assert_array_equal(curves[PRIOR].get_ydata(), [-0.2, -0.4, np.nan, -0.8])
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["E+  posterior samples", "E-  prior samples"]


def test_log_z_breaks_where_too_few_walkers_are_effective():
    effective = {2: 3.0, 4: 30.0, 6: 5.0, 8: 40.0}
    lines = [{"step": t, "log_z_effective_samples": n} for t, n in effective.items()]
    lines[1]["log_z_nats"], lines[3]["log_z_nats"] = -1.0, -2.0
    (line,) = axis_of(training.draw(Training(lines)), "log Z").lines
    np.testing.assert_array_equal(line.get_ydata(), [np.nan, -1.0, np.nan, -2.0])
    assert line.get_markevery() == [1, 3]  # dots, where no line is


def test_stiffness_has_no_limit_where_every_chain_has_a_metropolis_test():
    of_prior = {"prior_stiffness": 0.7, "prior_acceptance_rate": 0.7}
    (panel,) = curves.panels([{"step": 2, **of_prior}])
    assert (panel.title, panel.limit) == ("stiffness", None)
    untested = {"step": 2, **of_prior, "posterior_stiffness": 0.1}
    assert curves.panels([untested])[0].limit == 0.5


def test_steps_gone_back_to_and_limits_are_marked():
    figure = training.draw(Training([*LINES, WENT_BACK]))
    for title, marks in (("energies", ["v"]), ("stiffness", ["v", "h"])):
        alarms = [x for x in axis_of(figure, title).lines if x.get_color() == ALARM]
        assert len(alarms) == len(marks)
        assert list(alarms[0].get_xdata()) == [4, 4]
        if "h" in marks:
            assert list(alarms[1].get_ydata()) == [0.5, 0.5]


def test_places_without_a_panel_stay_empty():
    lines = [{"step": 2, **dict.fromkeys(("energy_gap_nats", "prior_grad_norm"), 1.0)}]
    lines[0] |= {"log_likelihood_nats": 1.0, "prior_acceptance": 1.0}
    figure = training.draw(Training(lines))  # four panels, in rows of three
    assert [axis.axison for axis in figure.axes] == [True] * 4 + [False] * 2
