import importlib.util
import math
import re

import jax
import pytest

import jebm
from experiments import options
from experiments.configs import test
from experiments.errors import ConfigError
from tests.experiments.runs import build_model
from tests.experiments.training.test_train import NormalisedBackbone, variational_config
from tools.speed import tpu_memory

PROGRAM = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%fused (p: f32[2]) -> f32[2] {
  ROOT %r = f32[2] all-reduce(%p), to_apply=%add
}

%body (p: f32[2]) -> f32[2] {
  ROOT %c = f32[2] call(%p), to_apply=%fused
}

%condition (p: f32[2]) -> pred[] {
  ROOT %t = pred[] constant(true)
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %s = (f32[2], /*index=1*/f32[2]) all-reduce-start(%p, %p), to_apply=%add
  %d = (f32[2], /*index=1*/f32[2]) all-reduce-done(%s)
  %g = f32[4] all-gather(%p), dimensions={0}
  ROOT %w = f32[2] while(%p), condition=%condition, body=%body
}
"""


def config_and_model():
    config = test.get_config()
    return config, build_model(config)


def learning_of(config):
    return options.read(config).learning


def test_collectives_are_counted_and_found_in_loops():
    assert tpu_memory.collectives(PROGRAM) == (3, 1)
    assert tpu_memory.collectives(PROGRAM.replace("all-gather", "negate")) == (2, 1)
    assert tpu_memory.collectives(PROGRAM.replace("body=%body", "body=%add")) == (3, 0)


def reduced(text):
    """How many numbers all-reduces of a program add up, after all that is no number."""
    kinds = set(re.findall(rf" ({tpu_memory.COLLECTIVES})(?:-start)?\(", text))
    assert kinds == {"all-reduce"}
    results = re.findall(r" = (.*?) all-reduce(?:-start)?\(", text)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(results))
    return sum(
        math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes
    )


def check_reductions(config, model, devices):
    """The step talks of its gradients and metrics, once each, and of nothing else."""
    lowered = tpu_memory.lower_step(learning_of(config), model, devices)
    text = lowered.compile().as_text()
    total, looped = tpu_memory.collectives(text)
    assert total > 0 and looped == 0
    assert " while(" in text  # the chains
    params = jax.eval_shape(jebm.init, jax.random.key(0), model)
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    tree = lowered.out_tree
    _, metrics = jax.tree.unflatten(tree, range(tree.num_leaves))
    metrics.pop("grad_norm")  # that of the mean gradient
    metrics.pop("prior_step_size", None)  # one for all
    assert reduced(text) == numbers + len(metrics)


def test_train_step_reduces_its_gradients_and_metrics_and_not_in_its_chains():
    config, model = config_and_model()
    check_reductions(config, model, jax.devices())


def test_train_step_reduces_the_statistics_of_its_batches(monkeypatch):
    monkeypatch.setitem(jebm.spec.BACKBONES, "vector", NormalisedBackbone)
    config = variational_config("gaussian")
    model = build_model(config)
    lowered = tpu_memory.lower_step(learning_of(config), model, jax.devices())
    text = lowered.compile().as_text()
    assert tpu_memory.collectives(text)[1] == 0
    params = jax.eval_shape(jebm.init, jax.random.key(0), model)
    assert set(params.backbone) == {"params", "batch_stats"}
    numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert reduced(text) > numbers


def test_sampler_needs_no_other_device_and_its_memory_not_more_steps():
    config, model = config_and_model()
    held = []
    for num_steps in (10, 300):
        config.chains.prior.num_steps = num_steps
        model = build_model(config)
        batch_size, device = config.eval.batch_size, jax.devices()[0]
        compiled = tpu_memory.lower_sampler(batch_size, model, device).compile()
        assert tpu_memory.collectives(compiled.as_text()) == (0, 0)
        held.append(tpu_memory.bytes_per_chip(compiled))
    images = config.eval.batch_size * 8 * 8 * 4
    assert images < held[0] == held[1]


def test_batch_that_chips_cannot_share_is_refused():
    config, model = config_and_model()
    config.learning.update(batch_size=9, persistent_chains=9)
    learning = learning_of(config)
    with pytest.raises(ConfigError, match="multiple of the 2 chips, got 9"):
        tpu_memory.lower_step(learning, model, jax.devices())


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the compiler of a TPU"
)
def test_step_compiles_for_chips_that_are_not_there():
    with pytest.raises(ConfigError, match="no topology 'v0:1x1'"):
        tpu_memory.devices_of("v0:1x1")
    config, model = config_and_model()
    devices = tpu_memory.devices_of("v5e:2x2")
    config.learning.batch_size = 8 * len(devices)
    config.learning.persistent_chains = 2 * config.learning.batch_size
    check_reductions(config, model, devices)
    compiled = tpu_memory.lower_step(learning_of(config), model, devices).compile()
    assert 0 < tpu_memory.bytes_per_chip(compiled) < 2**30
