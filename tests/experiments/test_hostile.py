"""Settings and files of a run that somebody has tampered with, or damaged."""

import ast
import json
import os
import shutil
import sys
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from experiments import options
from experiments.configs import test
from experiments.errors import ConfigError
from experiments.rundir.metrics import Metrics
from experiments.rundir.settings import check_settings
from experiments.training import train
from tests.experiments.runs import CONFIG, ROOT, contents, run_main

FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FIELDS = dict(options.flat(options.read(test.get_config()).to_dict()))

texts = st.sampled_from(
    [
        *("", "None", "True", "nan", "inf", "1e400", "999999999999999999999999"),
        *("../../evil", "/evil", "evil\n", "gelu", "normal", "eps", "encoder"),
        "__import__('pathlib').Path('evil').touch()",
        "(__import__('pathlib').Path('evil').touch(),)",
    ]
) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
integers = st.integers(-2, 100).map(str)
floats = st.sampled_from(["0.", "-1.", "1e-3", "0.5", "7.", "1e30"])
tuples = st.sampled_from(
    ["()", "(1,)", "(1, 2)", "(-1,)", "(1.5,)", "('a',)", "((1,), (2,))", "((),)"]
)


@st.composite
def an_override(draw):
    """A field and a value, half of the times of the type that is due."""
    field = draw(st.sampled_from(sorted(FIELDS)))
    due = {int: integers, float: floats, list: tuples}.get(type(FIELDS[field]), texts)
    return field, draw(due | due | texts | tuples)


overrides = st.lists(an_override(), min_size=1, max_size=2).map(dict)

_written = []


def _record(event, arguments):
    if not _written:
        return
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, str | bytes) and (
            set(mode or "") & set("wax+") or (flags or 0) & 3
        ):
            _written.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.system"):
        _written.append(str(arguments[0]))
    elif event == "pickle.find_class":
        _written.append(str(arguments))


@pytest.fixture(scope="module")
def recorded():
    """Paths that were written, and classes that were unpickled."""
    sys.addaudithook(_record)  # for good, so it records only in tests
    _written.append("start")
    yield _written
    _written.clear()


@settings(FUZZ, max_examples=250)
@given(overrides)
def test_any_overrides_are_accepted_or_refused_in_one_sentence(
    tmp_path_factory, recorded, given_overrides
):
    path = tmp_path_factory.mktemp("any") / "run"
    flags = [f"--config.{field}={value}" for field, value in given_overrides.items()]
    with pytest.MonkeyPatch.context() as patch:
        # All checks are before the first work, of which there is none here.
        learner = types.SimpleNamespace(step=0, params=None, step_sizes={})
        state = types.SimpleNamespace(learner=learner)
        patch.setattr(train, "create_state", lambda *arguments: state)
        patch.setattr(train, "print_overview", lambda *arguments: None)
        patch.setattr(train, "run_steps", lambda *arguments: None)
        patch.chdir(path.parent)
        del recorded[1:]
        try:
            run_main(CONFIG, f"--workdir={path}", *flags)
        except SystemExit as stopped:
            assert isinstance(stopped.code, str), flags
            assert stopped.code.startswith("error: ")
            assert "\n" not in stopped.code
            assert not path.exists()
        ours = (str(path), os.environ["JAX_COMPILATION_CACHE_DIR"])
        outside = [name for name in recorded[1:] if not name.startswith(ours)]
        assert outside == []
        assert not (path.parent / "evil").exists()


@pytest.fixture
def copied_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


FILES = ("config.json", "metrics.jsonl", "model.json")


@pytest.mark.slow
@settings(FUZZ, max_examples=60)
@given(st.sampled_from(FILES), st.data())
def test_damaged_files_of_a_run_are_told_by_name(
    trained_run, tmp_path_factory, name, data
):
    path = tmp_path_factory.mktemp("damaged")
    for file in FILES:
        shutil.copy(trained_run / file, path / file)
    before = (path / name).read_bytes()
    where = data.draw(st.integers(0, len(before) - 1))
    flipped = bytes([before[where] ^ data.draw(st.integers(1, 255))])
    (path / name).write_bytes(before[:where] + flipped + before[where + 1 :])
    try:
        check_settings(path, options.read(test.get_config()), "train")
        Metrics(path, 8).close()
    except ConfigError as error:
        assert str(path) in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "[1, 2]"),
        ("config.json", "{" * 10_000),
        ("metrics.jsonl", "3\n"),
        ("metrics.jsonl", '{"step": "four"}\n'),
        ("metrics.jsonl", "{\n"),
    ],
)
def test_file_of_something_else_is_refused_and_left_as_it_is(
    copied_run, test_config, name, text
):
    test_config.learning.num_steps = 12
    (copied_run / name).write_text(text)
    before = contents(copied_run)
    with pytest.raises(ConfigError, match=f"{name} cannot be read"):
        train.train(options.read(test_config), copied_run)
    assert contents(copied_run) == before


def test_what_a_file_says_is_no_part_of_the_page(copied_run):
    evil = "<script>alert(1)</script>"
    with (copied_run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 8, "rollbacks": 1, "rollback": evil}) + "\n")
    from experiments.rundir import report

    report.write(copied_run)
    page = (copied_run / "report.html").read_text()
    assert evil not in page
    assert "&lt;script&gt;alert" in page


FORBIDDEN = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}


@pytest.mark.parametrize(
    "file",
    [
        file.relative_to(ROOT)
        for folder in ("jebm", "experiments", "tools")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ],
    ids=str,
)
def test_nothing_is_unpickled_and_no_data_is_run(file):
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "compile", "os.system", "os.popen")
            options = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert options.get("allow_pickle", "False") == "False"
            assert options.get("shell", "False") == "False"
            if name == "torch.load":
                assert options["weights_only"] == "True"
