"""Typed options: what a config says, checked once, at the edge."""

import copy
import doctest
import importlib
import json
import math

import pytest

from experiments import options
from experiments.configs import CONFIGS, default, test
from experiments.errors import ConfigError
from jebm.kernels import RENAMED_SPACES
from tests.experiments.runs import CONFIG, run_main
from tests.experiments.training.test_train import variational_config

NAMES = sorted(p.stem for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def config_of(name):
    return importlib.import_module(f"experiments.configs.{name}").get_config()


def values_of(config=None):
    """The dict of a config, by default the tiny one, as a config.json holds it."""
    return json.loads((config or test.get_config()).to_json())


def changed(field, value, config=None):
    """The dict of a config with another value of a field."""
    leaves = dict(options.flat(values_of(config)))
    assert field in leaves
    return options.nested(leaves | {field: value})


def error_of(values):
    """The one sentence that `read` refuses a dict with."""
    with pytest.raises(ConfigError) as raised:
        options.read(values)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_read_and_comes_back_as_it_was(name):
    config = config_of(name)
    experiment = options.read(config)
    assert experiment.to_dict() == values_of(config)
    assert options.read(experiment.to_dict()) == experiment
    text = json.dumps(experiment.to_dict())  # as config.json does
    assert options.read(json.loads(text)) == experiment


def test_examples_of_the_docstrings():
    assert doctest.testmod(options).failed == 0


def test_reading_leaves_the_config_as_it_was():
    values = values_of()
    before = copy.deepcopy(values)
    experiment = options.read(values)
    experiment.chains["prior"]["num_steps"] = 99
    assert values == before


def test_options_cannot_be_changed():
    experiment = options.read(test.get_config())
    with pytest.raises(AttributeError):
        experiment.seed = 1
    with pytest.raises(AttributeError):
        experiment.learning.batch_size = 1


def test_numbers_have_the_type_of_their_field():
    """An integer will do for a float, and a list for a tuple."""
    values = changed("learning.energy_lr", 1)
    values["data"]["labels"] = [3, 4]
    experiment = options.read(values)
    assert type(experiment.learning.energy_lr) is float
    assert experiment.data.labels == (3, 4)


@pytest.mark.parametrize("section", ["", "data", "learning", "monitor", "eval", "log"])
def test_unknown_field_is_named_with_the_known_ones(section):
    values = values_of()
    (values[section] if section else values)["sede"] = 1
    where = f"config.{section}" if section else "config"
    message = error_of(values)
    assert message.startswith(f"{where} has no field 'sede'; known: [")
    if not section:
        assert message.endswith("did you mean 'seed'?")


SECTIONS = (
    *("data", "backbone", "energy", "likelihood", "chains", "learning", "monitor"),
    *("eval", "log"),
)


@pytest.mark.parametrize("value", [None, 3, [1], "name"])
@pytest.mark.parametrize("section", SECTIONS)
def test_section_that_is_none_is_named(section, value):
    message = error_of(values_of() | {section: value})
    assert message == f"config.{section} must be a section of fields, got {value!r}"


@pytest.mark.parametrize("chain", ["prior", "posterior"])
def test_chain_that_is_none_is_named(chain):
    values = values_of()
    values["chains"][chain] = 3
    message = error_of(values)
    assert message == f"config.chains.{chain} must be a section of fields, got 3"


@pytest.mark.parametrize(("old", "new"), sorted(options.RENAMED.items()))
def test_renamed_field_is_told_by_its_new_name_and_upgraded(old, new):
    leaves = dict(options.flat(values_of()))
    leaves[old] = leaves.pop(new)
    message = error_of(options.nested(leaves))
    assert message == f"config.{old} is now called config.{new}"
    assert options.upgrade(options.nested(leaves)) == values_of()


def test_every_renamed_field_is_called_as_one_that_there_is():
    fields = dict(options.flat(default.get_config().to_dict()))
    assert set(options.RENAMED.values()) <= fields.keys()
    assert not set(options.RENAMED) & fields.keys()


@pytest.mark.parametrize(("old", "new"), sorted(options.RENAMED.items()))
def test_renamed_field_on_the_command_line_is_told_by_its_new_name(tmp_path, old, new):
    path = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run_main(CONFIG, f"--workdir={path}", f"--config.{old}=1")
    assert stopped.value.code == f"error: config.{old} is now called config.{new}"
    assert not path.exists()


FIELDS = sorted(
    name
    for name, _ in options.flat(values_of())
    if name.partition(".")[0] not in ("backbone", "energy", "likelihood", "chains")
    and name.count(".") < 2  # those of an evaluator are its own to check
)


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field_is_named(field):
    leaves = dict(options.flat(values_of()))
    del leaves[field]
    assert error_of(options.nested(leaves)) == f"config.{field} is missing"


@pytest.mark.parametrize("field", SECTIONS)
def test_missing_section_is_named(field):
    values = values_of()
    del values[field]
    assert error_of(values) == f"config.{field} is missing"


@pytest.mark.parametrize(
    "field", ["chains.prior", "chains.posterior", "chains.posterior.start"]
)
def test_missing_chain_is_named(field):
    values = values_of()
    *above, last = field.split(".")
    node = values
    for part in above:
        node = node[part]
    del node[last]
    assert error_of(values) == f"config.{field} is missing"


EXPECTED = {  # what is said of a value that is none of the type
    int: "must be an integer",
    float: "must be a number",
    str: "must be a string",
    bool: "must be True or False",
    list: "must be a tuple",
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, "many", 1.5, True, {}, [None]])
def test_value_of_a_wrong_type_is_named_with_what_is_due(field, value):
    """Every field refuses at least all but those of its own type."""
    there = dict(options.flat(values_of()))[field]
    optional = field in ("data.image_shape", "data.data_dir", "data.heldout_class")
    fits = (
        (value is None and optional)
        or type(value) is type(there)
        or (field == "data.data_dir" and value == "many")
    )
    if fits and value != [None]:
        return
    message = error_of(changed(field, value))
    assert field in message
    names = (
        "learning.method", "learning.optimizer", "learning.compute_dtype",
        "data.on_corrupt", "prior",
    )  # fmt: skip
    if field in (*names, "matmul_precision"):
        assert message.startswith(f"unknown {field} {value!r}; known: [")
    elif value == {} and field.startswith("eval."):
        pass  # that would be the section of an evaluator
    elif there is not None and type(value) is not type(there):
        assert message == f"{field} {EXPECTED[type(there)]}, got {value!r}"


NUMBERS = sorted(
    name
    for name, value in options.flat(values_of())
    if type(value) in (int, float) and (name in FIELDS or name.startswith("chains."))
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", NUMBERS)
def test_number_that_is_not_finite_is_named(field, value):
    message = error_of(changed(field, value))
    there = dict(options.flat(values_of()))[field]
    is_int = type(there) is int and not field.startswith("chains.")
    due = "an integer" if is_int else "finite"
    assert message == f"{field} must be {due}, got {value}"


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("backbone.latent_dims", lambda v: [4, v]),
        ("energy.widths", lambda v: [[8, v], [8]]),
        ("likelihood.scale", lambda v: v),
    ],
)
def test_number_that_is_not_finite_is_named_wherever_it_is(field, broken, value):
    got = broken(value)
    message = error_of(changed(field, got))
    assert message == f"{field} must be finite, got {got}"


COUNTS = {  # the least value of integers
    "seed": 0,
    "data.num_workers": 0,
    "learning.batch_size": 1,
    "learning.kl_warmup_steps": 0,
    "learning.likelihood_warmup_steps": 0,
    "learning.nce_steps": 0,
    "learning.num_steps": 1,
    "learning.tilt_warmup_steps": 0,
    "learning.persistent_chains": 0,
    "learning.persistent_steps": 1,
    "learning.warmup_steps": 0,
    "monitor.max_rollbacks": 0,
    "eval.batch_size": 1,
    "eval.exact_length": 0,
    "eval.num_diagnosed": 1,
    "eval.num_posterior_samples": 1,
    "eval.num_samples": 2,
    "eval.num_temperatures": 0,
    "log.checkpoint_every": 1,
    "log.diagnose_every": 1,
    "log.every": 1,
    "log.keep": 3,
    "log.num_samples": 1,
    "log.num_walkers": 0,
    "log.sample_every": 1,
}


def test_every_integer_has_a_least_value():
    leaves = dict(options.flat(values_of()))
    integers = {f for f in FIELDS if type(leaves[f]) is int}
    assert integers == COUNTS.keys()


@pytest.mark.parametrize("field", COUNTS)
def test_integer_below_its_least_value_is_named(field):
    value = COUNTS[field] - 1
    bounds = f"at least {COUNTS[field]}"
    if field == "seed":
        bounds = f"in [0, {2**32 - 1}]"
    assert error_of(changed(field, value)) == f"{field} must be {bounds}, got {value}"


FRACTIONS = (
    "learning.adam_b1",
    "learning.adam_b2",
    "learning.ema_decay",
    "learning.energy_grad_scale",
    "learning.final_lr_fraction",
    "learning.posterior_tilt",
    "learning.reinit_probability",
    "learning.target_acceptance",
)


@pytest.mark.parametrize("field", [f for f in FIELDS if f in NUMBERS])
def test_number_out_of_range_is_named(field):
    if field in COUNTS:
        return
    bounds = "in [0, 1]" if field in FRACTIONS else "at least 0"
    assert error_of(changed(field, -0.5)) == f"{field} must be {bounds}, got -0.5"
    if field in FRACTIONS:
        assert error_of(changed(field, 1.5)) == f"{field} must be {bounds}, got 1.5"


def test_integer_that_no_float_can_hold_is_named():
    message = error_of(changed("learning.energy_lr", 10**400))
    assert message == "learning.energy_lr must be finite, got an integer beyond 1e308"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning.warmup_steps": 8},
            "learning.warmup_steps must be less than the num_steps of 8, got 8",
        ),
        (
            {"learning.nce_steps": 3},
            "learning.nce_steps needs learning.method 'two_stage', got 3 with 'mle'",
        ),
        (
            {"learning.persistent_chains": 30},
            "learning.persistent_chains must be 0 or a multiple of the batch_size of "
            "20, got 30",
        ),
        (
            {"log.checkpoint_every": 5},
            "log.checkpoint_every must be a multiple of log.every, so that what is "
            "saved and drawn has been checked, got 5 and 2",
        ),
        ({"log.num_samples": 9}, "log.num_samples must be an even square, got 9"),
        ({"log.num_samples": 8}, "log.num_samples must be an even square, got 8"),
        (
            {"eval.num_temperatures": 1},
            "eval.num_temperatures must be 0 or at least 2, got 1",
        ),
        (
            {"data.image_shape": [8, 8]},
            "data.image_shape must have 3 values, got [8, 8]",
        ),
        (
            {"chains.posterior.num_steps": 0},
            "learning.method 'mle' needs steps of the posterior chain, got "
            "chains.posterior.num_steps=0",
        ),
        (
            {"chains.posterior.start": "mode"},
            "learning.method 'mle' needs a chains.posterior.start of 'normal', 'prior' "
            "or 'encoder', got 'mode'",
        ),
        (
            {"learning.method": "variational"},
            "learning.method 'variational' needs chains.posterior.start 'encoder', got "
            "'normal'",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_told(changes, message):
    leaves = dict(options.flat(values_of()))
    assert changes.keys() <= leaves.keys()
    assert error_of(options.nested(leaves | changes)) == message


def test_unknown_compute_dtype_is_told_with_the_known_ones():
    message = error_of(changed("learning.compute_dtype", "float16"))
    assert message == (
        "unknown learning.compute_dtype 'float16'; known: ['bfloat16', 'float32']; did "
        "you mean 'bfloat16'?"
    )


def test_run_of_an_older_version_was_trained_in_float32():
    values = values_of()
    del values["learning"]["compute_dtype"]
    assert options.read(options.upgrade(values)).learning.compute_dtype == "float32"


def test_two_stages_need_an_energy_and_a_first_stage():
    config = variational_config("ebm")
    config.learning.method = "two_stage"
    assert "['checkpoint', 'stage_one'] are missing" in error_of(values_of(config))
    for field, value in (("checkpoint", 3), ("stage_one", None)):
        name = f"backbone.{field}"
        message = error_of(changed(name, value, config_of("mnist_ladder_ebm")))
        assert message == f"{name} must be a string, got {value!r}"
    config = config_of("mnist_ladder_ebm")
    config.prior = "gaussian"
    assert "prior must be 'ebm', got 'gaussian'" in error_of(values_of(config))


def test_changes_of_a_first_stage_are_sections_that_it_has_for_itself():
    def told(changes, **fields):
        config = config_of("mnist_ladder_ebm")
        config.backbone.update(changes=changes, **fields)
        return error_of(values_of(config))

    few = {"learning": {"num_steps": 3}}
    assert "backbone.changes may hold" in (message := told({"data": {"labels": (1,)}}))
    assert message.endswith("learning, monitor, log, got 'data'")
    message = told({"learning": 3})
    assert (
        message == "config.backbone.changes.learning must be a section of fields, got 3"
    )
    assert "backbone.checkpoint takes its place" in told(few, checkpoint="runs/one")


@pytest.mark.parametrize("chain", ["prior", "posterior"])
@pytest.mark.parametrize(("old", "new"), sorted(RENAMED_SPACES.items()))
def test_renamed_space_of_a_chain_is_told_by_its_new_name_and_upgraded(chain, old, new):
    values = changed(f"chains.{chain}.space", old)
    message = f"chains.{chain}.space {old!r} is now called {new!r}"
    assert error_of(values) == message
    upgraded = options.upgrade(values)
    assert upgraded == changed(f"chains.{chain}.space", new)
    assert options.read(upgraded).chains[chain]["space"] == new


def test_space_that_is_no_name_is_left_to_those_who_check_it():
    values = changed("chains.prior.space", ["eps"])
    assert options.upgrade(values) == values
    assert options.read(values).chains["prior"]["space"] == ["eps"]


def test_upgrade_leaves_what_is_of_today_as_it_is():
    assert options.upgrade(values_of()) == values_of()


def test_traced_values_are_taken_unchecked():
    learning = options.read(test.get_config()).learning
    traced = learning.traced({"energy_lr": "a tracer"})
    assert (traced.energy_lr, traced.batch_size) == ("a tracer", learning.batch_size)
    assert learning.energy_lr != "a tracer"
