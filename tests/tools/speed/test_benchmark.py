import importlib.util
import json
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.configs import cifar10
from experiments.models import model_spec
from jebm.convolution import patch_form
from tools.speed import benchmark

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="the peer is PyTorch"
)


@pytest.fixture
def small(monkeypatch):
    """The model of `cifar10`, tiny, on images of 8 x 8; two batch sizes."""
    shape, config = (8, 8, 3), cifar10.get_config()
    config.backbone.latent_dims, config.backbone.prior_widths = (4, 3), (5,)
    config.backbone.decoder_widths = (6, 5)
    config.energy.widths = ((5,), (4,))
    spec = model_spec(options.read(config), shape)
    model = jebm.build(spec)
    params = jebm.init(jax.random.key(0), model)
    monkeypatch.setattr(benchmark, "cifar10_model", lambda: (model, params, spec))
    monkeypatch.setattr(benchmark, "CIFAR10", shape)
    monkeypatch.setattr(benchmark, "SIDE", 64)
    for name in ("PRIOR_STEPS", "POSTERIOR_STEPS"):
        monkeypatch.setattr(benchmark, name, {1: 2, 16: 3, 100: 1})
    return model


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    calls = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    seconds = benchmark.alternate(sides, 3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_speedup_is_the_ratio_of_medians():
    entry = benchmark.against([1.0, 2.0, 9.0], "peer", [6.0, 4.0, 1.0])
    assert entry["speedup"] == 2.0
    assert entry["quartiles"] == [1.5, 5.5]


@pytest.mark.slow
def test_table_picture_and_file_tell_what_was_measured(
    small, tmp_path, capsys, monkeypatch
):
    two = {name: benchmark.BENCHMARKS[name] for name in ("matrix_product", "memory")}
    monkeypatch.setattr(benchmark, "BENCHMARKS", two)
    file, picture = tmp_path / "found.json", tmp_path / "folder" / "picture.png"
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(["# Speed", *benchmark.MARKS, "The end."]))
    files = [f"--json={file}", f"--picture={picture}", f"--page={page}"]
    benchmark.main(["--repeats=1", *files])
    found = json.loads(file.read_text())
    assert found["machine"]["jax"] == jax.__version__
    assert found["machine"]["cores"] == len(os.sched_getaffinity(0))
    product = found["matrix_product"]
    ratio = product["gflop_per_second"] / product["peer_gflop_per_second"]
    np.testing.assert_allclose(product["speedup"], ratio)
    table = capsys.readouterr().out
    assert f"| {product['speedup']:.2f} | product of two matrices" in table
    assert "| memory, chain length 1,000 |" in table
    assert picture.stat().st_size > 5000
    lines = page.read_text().splitlines()
    assert lines[0] == "# Speed" and lines[-1] == "The end."
    assert table.rstrip().rpartition("\n\n")[2].splitlines() == [
        line for line in lines if line.startswith("|")
    ]
    page.write_text("# No marks")
    with pytest.raises(ValueError, match=r"page.md must hold the lines <!-- table"):
        benchmark.write_page("", page)


def test_page_is_never_left_with_some_of_its_lines(
    small, tmp_path, monkeypatch, capsys
):
    page = tmp_path / "page.md"
    page.write_text("\n\n".join(["# Speed", *benchmark.MARKS]))
    before = page.read_text()
    with pytest.raises(SystemExit):
        benchmark.main(["--only=memory", f"--page={page}"])
    assert "--page holds the lines of all benchmarks" in capsys.readouterr().err

    def missing(repeats):
        raise benchmark.Missing("a peer")

    monkeypatch.setattr(benchmark, "BENCHMARKS", {"memory": missing})
    with pytest.raises(SystemExit, match="memory needs a peer"):
        benchmark.main([f"--page={page}"])
    assert page.read_text() == before


def test_memory_of_a_chain_does_not_depend_on_its_length(small):
    found = benchmark.memory(1)
    by_length = set(found["temp_bytes_by_chain_length"].values())
    by_batch = found["temp_bytes_by_batch"]
    assert len(by_length) == 1
    assert by_batch["1000"] > 20 * by_batch["16"] > 0


def test_direct_flops_are_those_of_the_products_of_patches(small):
    _, params, _ = benchmark.cifar10_model()
    decoder, batch = params.backbone["params"]["decoder"], 16

    def decode(z):
        x = (z @ decoder["Dense_0"]["kernel"]).reshape(batch, 4, 4, 6)
        x = patch_form(x, decoder["ConvTranspose_0"]["kernel"], 2)
        return patch_form(x, decoder["ConvTranspose_1"]["kernel"], 1)

    def flops(function):
        text = str(jax.make_jaxpr(function)(jnp.ones((batch, 4))))
        assert "dot_general" in text
        total = 0
        for equation in jax.make_jaxpr(function)(jnp.ones((batch, 4))).eqns:
            if equation.primitive.name == "dot_general":
                left, right = (v.aval for v in equation.invars)
                ((contracted, _), _) = equation.params["dimension_numbers"]
                shared = np.prod([left.shape[i] for i in contracted])
                total += 2 * left.size * right.size // shared
        return total

    forward = flops(decode)
    assert benchmark.direct_flops(small, batch) == 2 * forward


@needs_torch
@pytest.mark.parametrize("name", ["prior_chain", "posterior_chain"])
def test_chains_are_held_against_the_peer_at_every_batch(small, name):
    found = benchmark.BENCHMARKS[name](1)
    assert found["peer"].startswith("PyTorch 2")
    assert found["speedup"] == found["batch"]["16"]["speedup"]
    one = found["batch"]["1"]
    np.testing.assert_allclose(one["steps_per_second"], 2 / one["seconds"])
    np.testing.assert_allclose(one["peer_steps_per_second"], 2 / one["peer_seconds"])


@needs_torch
def test_chain_in_bfloat16_is_held_against_three_other_sides(small):
    found = benchmark.bfloat16_chain(1)
    rows = found["rows"]
    assert [row["what"] for row in rows[::3]] == [
        "bfloat16_chain, batch 16", "bfloat16_chain, batch 100",
    ]  # fmt: skip
    assert "autocast" in rows[0]["peer"] and rows[2]["peer"] == "jebm, float32"
    assert found["speedup"] == rows[0]["speedup"]
    np.testing.assert_allclose(rows[0]["steps_per_second"], 3 / rows[0]["seconds"])
    assert len(benchmark.table({"bfloat16_chain": found}).splitlines()) == 2 + len(rows)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("blackjax") is None, reason="the peer is BlackJAX"
)
def test_mala_is_held_against_blackjax(small):
    found = benchmark.mala_chain(1)
    assert found["batch"]["16"]["seconds"] > 0
    assert found["peer"].startswith("BlackJAX")


def test_what_is_not_installed_is_told_in_one_sentence(small, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: find(name) if name != "torch" else None,
    )
    with pytest.raises(SystemExit, match=r"prior_chain needs PyTorch: pip install"):
        benchmark.main(["--only=prior_chain", "--repeats=1"])


def test_a_start_is_timed_to_its_line_and_ended():
    program = "import time; print('ready', flush=True); time.sleep(60)"
    started = time.perf_counter()
    seconds = benchmark.start(["-c", program], "ready", os.environ)
    assert 0 < seconds <= time.perf_counter() - started < 30
    with pytest.raises(RuntimeError, match=r"no line 'ready' .* exit 3"):
        benchmark.start(["-c", "raise SystemExit(3)"], "ready", os.environ)


def test_number_of_repeats_is_checked():
    with pytest.raises(SystemExit):
        benchmark.main(["--repeats=0"])
