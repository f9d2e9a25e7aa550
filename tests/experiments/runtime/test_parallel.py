import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import options
from experiments.data import datasets
from experiments.runtime import parallel
from experiments.training import learner
from jebm import chains
from tests.experiments.runs import build_model, create_state, make_train_step
from tests.models import random_params


@pytest.fixture
def batch(test_config):
    return datasets.load(options.read(test_config).data)["train"].images[:20]


def step_on(devices, config, params, batch, steps=1):
    """State and metrics after steps of plain gradient descent at rate 1.

    `batch` is the share of this process.
    """
    model = build_model(config)
    key = jax.random.key(config.seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "create_optimizer", lambda learning: optax.sgd(1.0))
        state = create_state(config, model)
        step = make_train_step(config, model)
    started = state.learner.replace(params=params, ema=params)
    state = learner.distribute(state.replace(learner=started), devices)
    step = parallel.pmap(step, devices)
    for _ in range(steps):
        images = parallel.split(batch, parallel.num_here(devices))
        state, metrics = step(key, state, images)
    return learner.collect(state), parallel.unreplicate(metrics)


@pytest.mark.slow
def test_gradients_and_metrics_agree_on_one_and_two_devices(x64, test_config, batch):
    test_config.learning.gradient_penalty = 0.1
    model = build_model(test_config)
    params = random_params(model, scale=0.5, dtype=jnp.float64)
    results = []
    assert len(jax.devices()) == 2
    for num_devices in (1, 2):
        devices = jax.devices()[:num_devices]
        state, metrics = step_on(devices, test_config, params, batch)
        gradients = jax.tree.map(
            lambda old, new: old - new, params, state.learner.params
        )
        results.append((jax.tree.leaves(gradients), metrics, state.learner.persistent))
    (one, metrics_one, pool_one), (two, metrics_two, pool_two) = results
    largest = max(np.abs(g).max() for g in one)
    assert one[0].dtype == np.float64
    # All learn.
    assert all(np.abs(g).max() > 1e-9 * largest for g in one)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * largest)
    for a, b in zip(pool_one, pool_two, strict=True):
        assert a.shape[:1] == (40,)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    assert metrics_one.keys() == metrics_two.keys()
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics_two[name], value, rtol=1e-10, err_msg=name)


@pytest.mark.slow
def test_every_chain_of_every_step_has_its_own_key_whatever_the_devices(
    test_config, batch, monkeypatch
):
    run_chains = chains.run_chains
    seen = []

    def recording(keys, *arguments, **kwargs):
        jax.debug.callback(
            lambda data: seen.extend(map(tuple, np.asarray(data).tolist())),
            jax.random.key_data(keys),
        )
        return run_chains(keys, *arguments, **kwargs)

    monkeypatch.setattr(chains, "run_chains", recording)
    params = random_params(build_model(test_config), scale=1e-3)
    by_devices = []
    for num_devices in (1, 2):
        step_on(jax.devices()[:num_devices], test_config, params, batch, steps=2)
        jax.effects_barrier()
        by_devices.append(sorted(seen))
        seen.clear()
    assert len(by_devices[0]) == 2 * 2 * 20  # steps, roles, examples
    assert len(set(by_devices[0])) == len(by_devices[0])
    assert by_devices[0] == by_devices[1]


def test_devices_keep_equal_parameters(test_config, batch):
    devices = jax.local_devices()
    assert len(devices) == 2
    model = build_model(test_config)
    state = learner.distribute(create_state(test_config, model), devices)
    step = parallel.pmap(make_train_step(test_config, model), devices)
    for _ in range(3):
        state, _ = step(jax.random.key(0), state, parallel.split(batch, 2))
    for leaf in jax.tree.leaves(learner._with_chains(state, ((), ()))):
        first, second = np.asarray(leaf)
        np.testing.assert_array_equal(first, second)


def test_example_index_counts_through_the_global_batch():
    index = parallel.pmap(
        lambda key, state, batch: parallel.example_index(len(batch)),
        jax.local_devices(),
    )(jax.random.key(0), np.zeros(2, np.float32), np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(index, [[0, 1, 2], [3, 4, 5]])


def test_mean_is_over_devices():
    mean = parallel.pmap(lambda key, state, x: parallel.mean(x), jax.local_devices())
    result = mean(
        jax.random.key(0), np.zeros(2, np.float32), np.float32([[1, 2], [3, 6]])
    )
    np.testing.assert_array_equal(result, [[2, 4], [2, 4]])


def test_shard_keeps_the_order_of_examples():
    batch = np.arange(12).reshape(6, 2)
    sharded = parallel.split(batch, 3)
    assert sharded.shape == (3, 2, 2)
    np.testing.assert_array_equal(np.concatenate(sharded), batch)


def test_unshard_undoes_shard():
    tree = (np.arange(12).reshape(4, 3), {"a": np.float32([1, 2])})
    sharded = parallel.shard(tree, jax.local_devices())
    assert sharded[0].shape == (2, 2, 3)
    assert len(sharded[0].sharding.device_set) == 2
    back = parallel.unshard(sharded)
    np.testing.assert_array_equal(back[0], tree[0])
    np.testing.assert_array_equal(back[1]["a"], tree[1]["a"])


def test_unreplicate_undoes_replicate():
    tree = {"a": np.float32([1, 2]), "b": (np.int32(3),)}
    replicated = parallel.replicate(tree, jax.local_devices())
    assert replicated["a"].shape == (2, 2)
    assert len(replicated["a"].sharding.device_set) == 2
    back = parallel.unreplicate(replicated)
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"][0] == 3
    assert back["b"][0].dtype == np.int32
