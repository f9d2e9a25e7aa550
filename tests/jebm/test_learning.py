"""Learners: one contract that all pass, oracles through `update`, and what they refuse.

A new learner is one row of LEARNERS.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jebm
from jebm import chains, checkpoints, learning, objectives
from jebm.chains import ChainEnd, to_eps, to_latents
from jebm.densities import logdensity
from jebm.learning import losses
from jebm.learning.losses import Batch
from jebm.learning.state import Role
from tests.jebm.test_objectives import negative_log_likelihood
from tests.models import grid_nodes, random_params, small_model
from tests.precision import enable_x64

KEY = jax.random.key(0)
BATCH, SHAPE = 4, (2, 2, 1)
STEP = jebm.Langevin(num_steps=2, step_size=0.2)
OPTIONS = learning.Options(persistent_chains=2 * BATCH, energy_penalty=0.01)


def model_of(encoder, energy=True):
    model = small_model(
        (3, 2), image_shape=SHAPE, encoder_widths=(5,) if encoder else None
    )
    return model if energy else dataclasses.replace(model, energy=None)


def mle(**options):
    model = model_of(encoder=False)
    options = dataclasses.replace(OPTIONS, posterior=STEP, **options)
    return model, jebm.maximum_likelihood(model, STEP, optimizer(), options)


def mle_encoder(**options):
    model = model_of(encoder=True)
    posterior = jebm.MALA(2, 0.3, start="encoder")
    options = {
        "target_acceptance": 0.7, "posterior_tilt": 0.5, "tilt_warmup_steps": 2,
        "likelihood_warmup_steps": 3,
    } | options  # fmt: skip
    options = dataclasses.replace(OPTIONS, posterior=posterior, **options)
    return model, jebm.maximum_likelihood(
        model, jebm.MALA(2, 0.2), optimizer(), options
    )


def variational(**options):
    model = model_of(encoder=True)
    options = dataclasses.replace(OPTIONS, **options)
    warm_up = learning.WarmUp(kl_steps=5, kl_balance=True)
    return model, jebm.variational(
        model, STEP, optimizer(), options, warm_up=warm_up, energy_grad_scale=0.5
    )


def refined(**options):
    model = model_of(encoder=True)
    posterior = jebm.Langevin(2, 0.1, start="encoder")
    options = dataclasses.replace(
        OPTIONS, posterior=posterior, target_acceptance=0.7, **options
    )
    return model, jebm.variational(model, jebm.MALA(2, 0.2), optimizer(), options)


def second_stage(**options):
    model = model_of(encoder=True)
    options = dataclasses.replace(OPTIONS, energy_spectral_bound=1.0, **options)
    return model, jebm.second_stage(model, STEP, optimizer(), options, nce_steps=1)


def twin(**options):
    model = model_of(encoder=True, energy=False)
    options = dataclasses.replace(OPTIONS, **options)
    return model, jebm.variational(model, None, optimizer(), options)


def optimizer():
    """Each part at its own rate, as a user would have it."""
    return optax.multi_transform(
        {"backbone": optax.adam(1e-2), "energy": optax.sgd(1e-1)},
        jebm.Params("backbone", "energy"),
    )


LEARNERS = {
    "mle": mle,
    "mle_encoder": mle_encoder,
    "variational": variational,
    "refined": refined,
    "second_stage": second_stage,
    "twin": twin,
}


@pytest.fixture(params=LEARNERS, scope="module")
def make(request):
    return LEARNERS[request.param]


@pytest.fixture(scope="module")
def made(make):
    """Model, learner, a state before the first update, and images."""
    model, learner = make()
    return model, learner, start(model, learner), images()


def start(model, learner, seed=0, dtype=None):
    backbone = random_params(model, seed, dtype=dtype).backbone
    return learner.init(jax.random.key(seed), backbone)


def images(num=BATCH, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).uniform(size=(num, *SHAPE)).astype(dtype)


def run(learner, state, x, num=3, update=None):
    infos = []
    for i in range(num):
        state, info = (update or learner.update)(jax.random.fold_in(KEY, i), state, x)
        infos.append(info)
    return state, infos


def assert_close(a, b, tolerance):
    leaves, others = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(leaves) == len(others)
    for one, two in zip(leaves, others, strict=True):
        np.testing.assert_allclose(one, two, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_updates_move_what_learns_alone_and_info_is_finite_scalars(make, made):
    model, learner, state, x = made
    after, infos = run(learner, state, x)
    assert int(after.step) == 3
    for info in infos:
        assert {"loss_nats", "grad_norm"} <= info.keys()
        assert all(v.shape == () and np.isfinite(v) for v in info.values())
    before, moved = (jax.tree.leaves(s.params.energy) for s in (state, after))
    assert all((a != b).any() for a, b in zip(before, moved, strict=True))
    same = jax.tree.map(np.array_equal, state.params.backbone, after.params.backbone)
    assert set(jax.tree.leaves(same)) == {make is second_stage}
    if model.energy is not None:
        for old, new in zip(state.persistent, after.persistent, strict=True):
            assert old.shape == new.shape == (2 * BATCH, *old.shape[1:])
            assert (old != new).any(axis=1).all()  # both slots were visited
        assert infos[0]["energy_gap_nats"] == 0  # energies start at 0
        assert abs(infos[-1]["energy_gap_nats"]) > 0


@pytest.mark.slow
def test_averages_follow_the_parameters_as_stated(made):
    _, learner, state, x = made
    after, _ = run(learner, state, x, num=1)
    decay = 2 / 11  # (1 + step) / (10 + step), below the .999 of the options
    expected = jax.tree.map(
        lambda old, new: old + (1 - decay) * (new - old), state.ema, after.params
    )
    assert_close(after.ema, expected, 1e-6)


@pytest.mark.slow
def test_under_the_callers_jit_and_vmap_it_is_the_same(make, made):
    model, learner, state, x = made
    alone = run(learner, state, x, 2)
    jitted = run(learner, state, x, 2, jax.jit(lambda *a: learner.update(*a)))
    assert_close(alone, jitted, 1e-6)
    seeds = (0, 1)
    states = [start(model, learner, seed) for seed in seeds]
    batch = np.stack([images(seed=seed) for seed in seeds])
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    keys = jax.random.split(KEY, 2)
    together, infos = jax.vmap(learner.update)(keys, many, batch)
    for i in range(2):
        state, info = learner.update(keys[i], states[i], batch[i])
        assert_close(jax.tree.map(lambda a, i=i: a[i], together), state, 2e-5)
        assert_close(jax.tree.map(lambda a, i=i: a[i], infos), info, 2e-4)


@pytest.mark.slow
def test_second_call_is_not_traced_and_init_is_a_function_of_its_key(make, monkeypatch):
    traces = []

    def counted(key, index, inner=chains.example_keys):
        traces.append(index.shape)
        return inner(key, index)

    model, learner = make()
    state, x = start(model, learner), images()
    assert checkpoints.digests(state) == checkpoints.digests(start(model, learner))
    monkeypatch.setattr(chains, "example_keys", counted)
    run(learner, state, x, 1)
    assert len(traces) == 3  # one key for each role
    run(learner, state, images(seed=1), 3)
    assert len(traces) == 3


@pytest.mark.slow
def test_one_device_and_two_take_the_same_step(make, x64):
    """Same noise by global index; sums over the batch differ by rounding alone."""
    assert len(jax.devices()) == 2
    model, learner = make()
    state, x = start(model, learner, dtype=jnp.float64), images(dtype=np.float64)
    assert jax.tree.leaves(state.params)[0].dtype == np.float64
    one, info = learner.update(KEY, state, x)
    _, spread = make(reduce=functools.partial(jax.lax.pmean, axis_name="devices"))

    def split(tree):
        return jax.tree.map(lambda a: jnp.reshape(a, (2, -1, *a.shape[1:])), tree)

    def each(state):
        copied = dataclasses.replace(state, persistent=())
        copied = jax.tree.map(lambda a: jnp.stack([a, a]), copied)
        return dataclasses.replace(copied, persistent=split(state.persistent))

    index = split(jnp.arange(BATCH))
    update = jax.pmap(spread.update, "devices", in_axes=(None, 0, 0, 0))
    two, infos = update(KEY, each(state), split(x), index)
    assert_close(two, each(one), 1e-9)
    assert_close(jax.tree.map(lambda a: a[1], infos), info, 1e-9)


def test_saved_state_goes_on_to_the_same_bits(made, tmp_path):
    _, learner, state, x = made
    after, _ = run(learner, state, x, 2)
    items = {"ema": after.ema, "train_state": dict(vars(after))}
    with checkpoints.manager(tmp_path, keep=1) as manager:
        checkpoints.write(manager, 2, items)
    _, read = checkpoints.restore(tmp_path, items)
    restored = learning.LearnerState(**read["train_state"])
    ends = (learner.update(KEY, s, x)[0] for s in (after, restored))
    one, two = map(checkpoints.digests, ends)
    assert one == two


def posterior_and_prior(model, params, x, num):
    """Nodes of equal weight for p(eps | x) and p(eps), from quadrature.

    Systematic resampling: each node of the grid comes num times its weight, to within
    one, so that means over these are integrals to about 1 / num.
    """
    eps, _ = grid_nodes(bound=5, num=61)
    given = jnp.broadcast_to(x, (len(eps[0]), *x.shape[1:]))
    picked = []
    for image in (given, None):
        weights = jax.nn.softmax(logdensity(model, params, eps, space="eps", x=image))
        where = np.searchsorted(
            np.cumsum(np.asarray(weights)), (np.arange(num) + 0.5) / num
        )
        picked.append(tuple(e[jnp.asarray(where)] for e in eps))
    return picked


def stub_chains(monkeypatch, positive, negative):
    """Lets chains end at these positions in eps-space."""

    def ended(keys, model, params, chain, *, x=None, start=None, **weights):
        eps = negative if x is None else positive
        zeros = jnp.zeros(len(keys))
        info = jebm.langevin.LangevinInfo(zeros, zeros, zeros)
        return ChainEnd(to_latents(model, params, eps, "eps"), eps, info, None)

    monkeypatch.setattr(chains, "run_chains", ended)


def gradient_of_update(learner, state, x):
    """What plain descent at rate 1 has taken."""
    after, _ = learner.update(KEY, state, x)
    return jax.tree.map(lambda a, b: a - b, state.params, after.params)


@pytest.mark.slow
def test_update_descends_the_likelihood_by_quadrature(x64, monkeypatch):
    """-log p(x) and its gradient for decoder, hierarchy and energies by quadrature."""
    model = small_model((1, 1))
    params, num = random_params(model, dtype=jnp.float64, scale=0.7), 200_000
    x = jnp.full((1, 1, 1, 1), 0.8)
    gradient = jax.jit(jax.grad(lambda p: negative_log_likelihood(model, p, x)))
    expected = gradient(params)
    stub_chains(monkeypatch, *posterior_and_prior(model, params, x, num))
    options = learning.Options(gradient_penalty=0.0, posterior=STEP)
    learner = jebm.maximum_likelihood(model, STEP, optax.sgd(1.0), options)
    state = dataclasses.replace(learner.init(KEY), params=params)
    got = gradient_of_update(learner, state, jnp.broadcast_to(x, (num, 1, 1, 1)))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected))
    for part in ("backbone", "energy"):
        assert_close(
            jax.tree.map(lambda g: g / largest, getattr(got, part)),
            jax.tree.map(lambda g: g / largest, getattr(expected, part)),
            3e-4,
        )


@pytest.mark.slow
def test_second_stage_descends_the_contrast_by_quadrature(x64, monkeypatch):
    """E_q E(z) + log Z, whose gradient is that of the cross entropy of q and p."""
    model = small_model((1, 1), encoder_widths=(4,))
    params, num = random_params(model, dtype=jnp.float64, scale=0.7), 100_000
    x = jnp.full((num, 1, 1, 1), 0.8)
    _, negative = posterior_and_prior(model, params, x[:1], num)
    stub_chains(monkeypatch, None, negative)
    options = learning.Options(gradient_penalty=0.0)
    learner = jebm.second_stage(model, STEP, optax.sgd(1.0), options)
    state = learner.init(KEY, params.backbone)
    state = dataclasses.replace(state, params=params)
    got = gradient_of_update(learner, state, x)
    keys = step_keys(Role.POSTERIOR, num)
    noise = chains.draw_noise(keys, model, params)
    positive = chains.encode(model, params, x, noise)[0]

    def cross_entropy(energy):
        p = params._replace(energy=energy)
        eps, _ = grid_nodes(bound=6, num=121)
        log_z = jax.nn.logsumexp(logdensity(model, p, eps, space="eps"))
        return jebm.energy(model, p, positive).mean() + log_z

    expected = jax.jit(jax.grad(cross_entropy))(params.energy)
    assert_close(got.energy, expected, 1e-3)
    assert all(np.all(g == 0) for g in jax.tree.leaves(got.backbone))


@pytest.mark.slow
def test_penalties_are_those_of_the_options(x64):
    model = small_model((2, 1))
    params = random_params(model, dtype=jnp.float64)
    x = jnp.full((3, 1, 1, 1), 0.3)

    def terms(**weights):
        options = learning.Options(posterior=STEP, **weights)
        learner = jebm.maximum_likelihood(model, STEP, optax.sgd(1.0), options)
        state = dataclasses.replace(learner.init(KEY), params=params)
        return learner.update(KEY, state, x)[1]

    off = terms(gradient_penalty=0.0)
    square = terms(gradient_penalty=0.0, energy_penalty=0.7)
    plus, minus = drawn(model, params, x)
    energies = [jebm.energy(model, params, z) for z in (plus, minus)]
    expected = 0.7 * sum((e**2).mean() for e in energies)
    np.testing.assert_allclose(square["loss_nats"] - off["loss_nats"], expected)
    steep = terms(gradient_penalty=0.3)
    slope = objectives.energy_gradient_penalty(
        model, params, to_eps(model, params, minus)
    )
    np.testing.assert_allclose(
        steep["loss_nats"] - off["loss_nats"], 0.3 * slope.mean()
    )
    gap = energies[1].mean() - energies[0].mean()
    np.testing.assert_allclose(off["energy_gap_nats"], gap)
    eps = np.concatenate(to_eps(model, params, minus), axis=1)
    np.testing.assert_allclose(off["prior_eps_square"], (eps**2).mean())


@pytest.mark.parametrize(
    ("kernel", "step_size"),
    [(jebm.MALA, 0.05), (jebm.MALA, 3.0), (jebm.Underdamped, 0.05)],
)
def test_step_of_an_adjusted_chain_follows_the_acceptance(kernel, step_size):
    model = model_of(encoder=True)
    options = dataclasses.replace(OPTIONS, target_acceptance=0.7)
    still = optax.set_to_zero()
    learner = jebm.second_stage(model, kernel(5, step_size), still, options)
    state = start(model, learner)
    assert state.step_sizes["prior"] == np.float32(step_size)
    before = state.step_sizes["prior"]
    state, infos = run(learner, state, images(), num=500)
    last = [float(info["prior_acceptance_rate"]) for info in infos[-200:]]
    # 4,000 proposals, correlated along five steps: a standard error below .02.
    assert abs(np.mean(last) - 0.7) < 0.06
    assert (state.step_sizes["prior"] > before) == (step_size < 1)
    steps = [float(info["prior_step_size"]) for info in infos]
    assert steps[0] == np.float32(step_size)
    assert np.std(np.log(steps[-200:])) < 0.1


def test_steps_stay_where_no_chain_runs():
    chain = jebm.MALA(2, 0.2)
    adapted = learning.Options(
        posterior=dataclasses.replace(chain, start="encoder"), target_acceptance=0.7
    )
    model = model_of(encoder=True)
    second = jebm.second_stage(model, chain, optimizer(), adapted)
    state = start(model, second)
    latents = jebm.posterior_sample(KEY, model, state.params, images())
    state, _ = second.update(KEY, state, latents)
    assert state.step_sizes["posterior"] == np.float32(0.2)
    assert state.step_sizes["prior"] != np.float32(0.2)
    # Without an energy there is no chain of the prior, whichever it would be.
    twin = jebm.maximum_likelihood(
        model_of(encoder=True, energy=False),
        jebm.Langevin(2, 0.2),
        optimizer(),
        adapted,
    )
    assert twin.init(KEY).step_sizes.keys() == {"posterior"}
    still = jebm.second_stage(
        model, jebm.MALA(0, 0.2), optimizer(), learning.Options(target_acceptance=0.7)
    )
    assert start(model, still).step_sizes == {}


def test_step_stays_while_classes_are_contrasted_without_chains():
    model = model_of(encoder=True)
    options = dataclasses.replace(OPTIONS, target_acceptance=0.7)
    learner = jebm.second_stage(
        model, jebm.MALA(5, 0.05), optimizer(), options, nce_steps=3
    )
    state, _ = run(learner, start(model, learner), images(), num=3)
    assert state.step_sizes["prior"] == np.float32(0.05)
    state, _ = run(learner, state, images(), num=1)
    assert state.step_sizes["prior"] > 0.05


def step_keys(role, num, step=0):
    key = jax.random.fold_in(jax.random.fold_in(KEY, role), step)
    return chains.example_keys(key, jnp.arange(num))


def drawn(model, params, x):
    """The samples of a first update with key KEY."""
    found = []
    for role, given in ((Role.POSTERIOR, x), (Role.PRIOR, None)):
        keys = step_keys(role, len(x))
        found.append(chains.run_chains(keys, model, params, STEP, x=given).latents)
    return found


@pytest.mark.slow
def test_initial_parameters_follow_x64_and_a_dtype():
    model = model_of(encoder=True)
    plain = jebm.init(KEY, model)
    half = jebm.init(KEY, model, jnp.bfloat16)
    with enable_x64(True):
        double = jebm.init(KEY, model)
        single = jebm.init(KEY, model, jnp.float32)
        sample = jebm.sample(KEY, model, double, 2, num_steps=2)
        assert sample.x.dtype == jnp.float64
    for tree, dtype in ((plain, "float32"), (half, "bfloat16"), (double, "float64")):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(tree)} == {dtype}
        # One seed means one start in any precision.
        assert_close(jax.tree.map(lambda a: a.astype(np.float32), tree), plain, 1e-2)
    assert checkpoints.digests(single) == checkpoints.digests(plain)
    with pytest.raises(ValueError, match="dtype must be floating-point, got int32"):
        jebm.init(KEY, model, jnp.int32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: jebm.variational(model_of(False), None, optax.sgd(1.0)),
            "needs a backbone with an encoder",
        ),
        (
            lambda: jebm.variational(
                model_of(True), None, optax.sgd(1.0), learning.Options(posterior=STEP)
            ),
            "posterior must start at 'encoder', got Langevin",
        ),
        (
            lambda: jebm.maximum_likelihood(model_of(True), None, optax.sgd(1.0)),
            r"chain with steps.* Options\(posterior=.*start='encoder'.* got .*"
            "num_steps=0",
        ),
        (
            lambda: jebm.second_stage(model_of(True, False), None, optax.sgd(1.0)),
            "learns energies alone, and the model has none",
        ),
        (
            lambda: jebm.second_stage(model_of(True), None, optax.sgd(1.0)).init(KEY),
            r"needs a trained backbone: init\(key, params.backbone\)",
        ),
        (
            lambda: jebm.second_stage(model_of(True), None, optax.sgd(1.0)).init(
                KEY, random_params(model_of(False)).backbone
            ),
            "params do not fit the model",
        ),
        (
            lambda: jebm.second_stage(
                model_of(True), None, optax.sgd(1.0), nce_steps=-1
            ),
            "nce_steps must be an integer >= 0, got -1",
        ),
        (
            lambda: jebm.variational(model_of(True), 40, optax.sgd(1.0)),
            "chain must be a jebm.Langevin, jebm.MALA, jebm.Underdamped or "
            "jebm.Tempered, got 40",
        ),
        (
            lambda: jebm.variational(
                model_of(True), jebm.Langevin(start="encoder"), optax.sgd(1.0)
            ),
            "start of the prior chain must be 'normal' or 'prior', .* got 'encoder'",
        ),
        (
            lambda: jebm.variational(
                model_of(True), None, optax.sgd(1.0), energy_grad_scale=1.5
            ),
            r"energy_grad_scale must lie in \[0, 1\], got 1.5",
        ),
        (lambda: learning.Options(ema_decay=1.1), r"ema_decay must lie in \[0, 1\]"),
        (
            lambda: learning.Options(gradient_penalty=float("nan")),
            "gradient_penalty must be finite, got nan",
        ),
        (
            lambda: learning.Options(persistent_chains=2.0),
            "persistent_chains must be an integer >= 0, got 2.0",
        ),
        (
            lambda: learning.Options(persistent_steps=0),
            "persistent_steps must be a positive integer, got 0",
        ),
        (
            lambda: learning.Options(persistent_steps=3),
            "persistent_steps needs persistent_chains",
        ),
        (
            lambda: learning.Options(gradient_penalty=-1.0),
            "gradient_penalty must be at least 0, got -1.0",
        ),
        (lambda: learning.Options(reduce=None), "reduce must be a function, got None"),
        (
            lambda: learning.Options(compute_dtype="float16"),
            "unknown compute_dtype 'float16'; known: .*; did you mean 'bfloat16'",
        ),
        (
            lambda: jebm.variational(model_of(True), None, 1e-3),
            "optimizer must be an optax.GradientTransformation, got 0.001",
        ),
        (
            lambda: jebm.variational(model_of(True), None, optax.sgd(1.0), {"a": 1}),
            "options must be a Options, got dict",
        ),
        (
            lambda: jebm.second_stage(model_of(True), None, optax.sgd(1.0)).init(
                KEY, random_params(model_of(True))
            ),
            "backbone must be the variables of the backbone, {'params': ...}, as in "
            "`params.backbone`, got 2 of Params",
        ),
        (lambda: learning.WarmUp(kl_balance=True), "kl_balance needs a warm-up"),
        (
            lambda: jebm.second_stage(
                model_of(True),
                STEP,
                optax.sgd(1.0),
                learning.Options(target_acceptance=0.7),
            ),
            "target_acceptance needs a prior chain with a Metropolis test",
        ),
        (
            lambda: learning.Options(target_acceptance=1.5),
            r"target_acceptance must lie in \[0, 1\], got 1.5",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_images_and_chains_that_do_not_fit_are_refused_by_update(made):
    model, learner, state, x = made
    with pytest.raises(ValueError, match=r"x must have shape \[N, 2, 2, 1\]"):
        learner.update(KEY, state, x[..., 0])
    with pytest.raises(ValueError, match=r"floating-point in .*got uint8"):
        learner.update(KEY, state, (x * 255).astype(np.uint8))
    with pytest.raises(ValueError, match=r"x must lie in \[0, 1\], got values in"):
        learner.update(KEY, state, 255 * x)
    with pytest.raises(ValueError, match="state must be a LearnerState, got 2 of Par"):
        learner.update(KEY, state.params, x)
    with pytest.raises(ValueError, match=r"index must be integers \[4\], got"):
        learner.update(KEY, state, x, jnp.arange(9))
    if model.energy is not None:
        without = dataclasses.replace(state, persistent=())
        with pytest.raises(ValueError, match="state holds 0 persistent chains"):
            learner.update(KEY, without, x)
        with pytest.raises(ValueError, match="multiple of the batch size, got 8 for 3"):
            learner.update(KEY, state, x[:3])


def test_limits_tell_what_is_wrong():
    limits = learning.Limits(energy_gap_nats=5.0)
    sound = {"energy_gap_nats": -5.0, "loss_nats": 1e30}
    assert learning.violated_limits(sound, limits) == []
    wrong = {"energy_gap_nats": -5.1, "prior_eps_square": 11.0}
    assert learning.violated_limits(wrong, limits) == [
        "energy_gap_nats of -5.1 beyond 5",
        "prior_eps_square of 11 beyond 10",
    ]
    assert learning.violated_limits({"loss_nats": np.nan}) == ["loss_nats not finite"]


@pytest.mark.parametrize("tilt", [0.0, 1.0])
def test_generator_feels_no_energy_where_the_posterior_is_not_tilted(tilt):
    model, learner = mle_encoder(
        posterior_tilt=tilt, tilt_warmup_steps=0, persistent_chains=0
    )
    state = start(model, learner)
    energy = jax.tree.map(lambda leaf: leaf + 0.5, state.params.energy)
    tilted = dataclasses.replace(state, params=state.params._replace(energy=energy))
    moved, others = (
        learner.update(KEY, s, images())[0].params.backbone for s in (state, tilted)
    )
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), moved, others)
    largest = max(jax.tree.leaves(differences))
    assert (largest < 1e-6) == (tilt == 0)


def test_tilt_of_the_posterior_warms_up():
    options = learning.Options(posterior_tilt=0.8, tilt_warmup_steps=4)
    tilts = [float(options.tilt(jnp.int32(step), jnp.float32)) for step in (0, 2, 4, 9)]
    np.testing.assert_allclose(tilts, [0, 0.4, 0.8, 0.8], rtol=1e-6)


def test_weight_of_the_likelihood_warms_up():
    options = learning.Options(posterior_tilt=0.5, likelihood_warmup_steps=4)
    weights = [options.weights(jnp.int32(step), jnp.float32) for step in (0, 2, 4, 9)]
    likelihoods = [float(weight["likelihood_weight"]) for weight in weights]
    np.testing.assert_allclose(likelihoods, [0, 0.5, 1, 1], rtol=1e-6)
    assert [float(weight["tilt"]) for weight in weights] == [0.5] * 4
    assert options.weights(jnp.int32(0), jnp.float32)["likelihood_weight"] == 0


def test_at_the_start_of_its_warm_up_the_posterior_chain_does_not_see_the_image():
    model, learner = mle_encoder(likelihood_warmup_steps=100, persistent_chains=0)
    rule = dataclasses.replace(OPTIONS, likelihood_warmup_steps=100)
    state = start(model, learner)
    keys, x = jax.random.split(KEY, 3), images()[:3]
    begin = chains.start_positions(keys, model, state.params, jebm.MALA(5, 0.3))

    def end(x, step):
        weights = rule.weights(jnp.int32(step), jnp.float32)
        ended = chains.run_chains(
            keys, model, state.params, jebm.MALA(5, 0.3), x=x, start=begin, **weights
        )
        return ended.position[0]

    np.testing.assert_array_equal(end(x, 0), end(1 - x, 0))
    assert not np.allclose(end(x, 100), end(1 - x, 100))


def test_steps_of_both_tested_chains_follow_the_acceptance():
    model, learner = mle_encoder()
    _, infos = run(learner, start(model, learner), images(), num=30)
    for name in ("prior", "posterior"):
        steps = [float(info[f"{name}_step_size"]) for info in infos]
        rates = [float(info[f"{name}_acceptance_rate"]) for info in infos]
        for step, after, rate in zip(steps, steps[1:], rates, strict=False):
            assert (after > step) == (rate > 0.7)


@pytest.mark.slow
def test_encoder_learns_what_the_posterior_chain_ends_at():
    """On a frozen generator of one latent, whose posterior quadrature knows."""
    model = jebm.build(
        {
            "image_shape": (1, 1, 1),
            "backbone": {
                "latent_dims": (1,),
                "decoder_widths": (),
                "encoder_widths": (16,),
            },
            "energy": None,
            "likelihood": {"name": "gaussian", "scale": 0.3},
        }
    )
    encoder = lambda path: "encoder" in path[0].key or "post" in path[0].key  # noqa: E731
    labels = lambda params: jebm.Params(  # noqa: E731
        jax.tree_util.tree_map_with_path(
            lambda path, _: "learned" if encoder(path) else "kept", params.backbone
        ),
        {},
    )
    optimizer = optax.multi_transform(
        {"learned": optax.adam(5e-3), "kept": optax.set_to_zero()}, labels
    )
    options = learning.Options(
        posterior=jebm.MALA(20, 0.4, start="encoder"), ema_decay=0.9
    )
    learner = jebm.maximum_likelihood(model, None, optimizer, options)
    state = learner.init(KEY)
    decoder = state.params.backbone["params"]["decoder"]
    decoder["Dense_0"] = {"kernel": jnp.full((1, 1), 0.5), "bias": jnp.full((1,), 0.4)}
    x = np.random.default_rng(0).uniform(size=(200, 1, 1, 1)).astype(np.float32)
    for step in range(600):
        state, _ = learner.update(jax.random.fold_in(KEY, step), state, x)
    draws = jebm.posterior_sample(
        KEY, model, state.ema, np.repeat(x[:5], 2000, axis=0), num_steps=0
    )[0]
    draws = np.asarray(draws).reshape(5, 2000)
    # By quadrature on a grid.
    z = np.linspace(-6, 6, 2001)
    error = x[:5].reshape(5, 1) - 1 / (1 + np.exp(-(0.5 * z + 0.4)))
    weights = np.exp(-0.5 * z**2 - 0.5 * (error / 0.3) ** 2)
    weights /= weights.sum(axis=1, keepdims=True)
    mean = weights @ z
    spread = np.sqrt(weights @ z**2 - mean**2)
    # An error of .02 is that of 2,000 draws; the rest is what 600 updates leave.
    np.testing.assert_allclose(draws.mean(axis=1), mean, atol=0.08)
    np.testing.assert_allclose(draws.std(axis=1), spread, rtol=0.12)


def in_bfloat16(model):
    return jebm.with_compute_dtype(model, "bfloat16")


def relative_error(found, expected):
    """Of the whole vector that the leaves of a pytree make."""
    both = [jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
            for tree in (found, expected)]  # fmt: skip
    return jnp.linalg.norm(both[0] - both[1]) / jnp.linalg.norm(both[1])


@pytest.mark.slow
def test_an_update_in_bfloat16_keeps_its_state_in_float32(make):
    model, learner = make(compute_dtype="bfloat16")
    _, exact = make()
    state, x = start(model, learner), images()
    found, infos = run(learner, state, x)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((found, infos))}
    assert jnp.dtype("bfloat16") not in dtypes
    after, before = ([a.dtype for a in jax.tree.leaves(s)] for s in (found, state))
    assert after == before
    expected, _ = run(exact, state, x)
    # Chains and Adam's first steps, of size 1 whatever the gradient, add to rounding.
    assert 1e-6 < relative_error(found.params, expected.params) < 5e-2


@pytest.mark.parametrize("space", ["eps", "z"])
def test_gradients_of_a_chain_in_bfloat16_are_those_of_float32_to_rounding(space):
    model = model_of(encoder=False)
    params, x = random_params(model), jnp.asarray(images())
    eps = tuple(jax.random.normal(KEY, (BATCH, *s)) for s in ((3,), (2,)))

    def gradient(model):
        density = lambda z: logdensity(model, params, z, x=x, space=space).sum()  # noqa: E731
        return jax.grad(density)(eps)

    found = gradient(in_bfloat16(model))
    assert all(leaf.dtype == jnp.float32 for leaf in found)
    assert 1e-5 < relative_error(found, gradient(model)) < 1e-2


@pytest.mark.parametrize("name", ["mle", "variational"])
def test_gradient_of_the_loss_in_bfloat16_is_that_of_float32_to_rounding(name):
    """Of the same samples, with penalties, which differentiate twice."""
    model = model_of(encoder=name == "variational")
    options = learning.Options(gradient_penalty=0.1, energy_penalty=0.1)
    params, keys = random_params(model), chains.example_keys(KEY, jnp.arange(BATCH))
    draws = [
        tuple(jax.random.normal(jax.random.key(seed), (BATCH, dim)) for dim in (3, 2))
        for seed in (1, 2)
    ]
    positive = draws[0] if name == "mle" else None
    batch = Batch(
        x=jnp.asarray(images()), keys=keys, positive=positive, negative=draws[1],
        eps=draws[1], step=jnp.zeros((), jnp.int32), spectral={},
    )  # fmt: skip

    def gradient(model):
        loss = {
            "mle": functools.partial(losses.maximum_likelihood_loss, model, options),
            "variational": functools.partial(
                losses.variational_loss, model, options, learning.WarmUp(), 0.5
            ),
        }[name]
        return jax.jit(jax.grad(lambda params: loss(params, batch)[0]))(params)

    found = gradient(in_bfloat16(model))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert 1e-5 < relative_error(found, gradient(model)) < 1e-2


@pytest.mark.slow
def test_a_learner_in_bfloat16_is_traced_once(monkeypatch):
    traces = []

    def counted(key, index, inner=chains.example_keys):
        traces.append(index.shape)
        return inner(key, index)

    model, learner = mle(compute_dtype="bfloat16")
    monkeypatch.setattr(chains, "example_keys", counted)
    run(learner, start(model, learner), images())
    assert len(traces) == 3  # one key for each role


def test_generator_feels_no_energy_of_its_state_either():
    backbone = jebm.backbones.Ladder(
        latent_shapes=((2,), (2,)), width=4, encoder_widths=(4, 4)
    )
    model = jebm.Model(SHAPE, backbone, jebm.energies.State(channels=2, widths=(3,)))
    params, x = random_params(model), images()
    z = jebm.posterior_sample(KEY, model, params, x)

    def gradient(tilt, energy):
        batch = Batch(x, None, z, z, z, jnp.int32(0), {})
        options = learning.Options(posterior_tilt=tilt, gradient_penalty=0.0)
        of = model if energy else dataclasses.replace(model, energy=None)

        def loss(backbone):
            changed = params._replace(backbone=backbone)
            return losses.maximum_likelihood_loss(of, options, changed, batch)[0]

        return jax.grad(loss)(params.backbone)["params"]["top"]

    apart = jax.tree.map(
        lambda *g: float(np.abs(g[0] - g[1]).max()), gradient(0.0, True),
        gradient(0.0, False),
    )  # fmt: skip
    # The prior samples' log p_beta is in both losses.
    assert max(jax.tree.leaves(apart)) < 1e-6
    whole = gradient(1.0, True)
    assert not np.allclose(
        jax.tree.leaves(whole)[0], jax.tree.leaves(gradient(0.0, True))[0]
    )


def test_first_state_can_be_donated(made):
    _, learner, state, x = made
    update = jax.jit(learner.update, donate_argnums=1)
    copied = jax.tree.map(jnp.copy, state)
    leaves = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.params)]
    assert not set(leaves) & {
        leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.ema)
    }
    assert update(KEY, copied, x)[0].step == state.step + 1


def test_donation_leaves_an_array_of_the_caller_s_alone():
    chain = jebm.MALA(2, jnp.float32(0.2))
    model = model_of(encoder=True)
    options = learning.Options(target_acceptance=0.7)
    learner = jebm.second_stage(model, chain, optimizer(), options)
    update = jax.jit(learner.update, donate_argnums=1)
    update(KEY, start(model, learner), images())
    assert chain.step_size == np.float32(0.2)


@pytest.mark.parametrize(
    "options",
    [{"posterior_tilt": 0.5}, {"tilt_warmup_steps": 3}, {"likelihood_warmup_steps": 3}],
)
@pytest.mark.parametrize("make", [variational, second_stage])
def test_options_of_a_posterior_chain_are_refused_without_one(make, options):
    with pytest.raises(ValueError, match=rf"does not take {next(iter(options))}, got"):
        make(**options)


def test_statistics_of_batches_that_would_never_move_are_refused():
    model = model_of(encoder=False)
    params = random_params(model)
    params = params._replace(backbone={**params.backbone, "batch_stats": {}})
    with pytest.raises(ValueError, match="never move the statistics"):
        losses.maximum_likelihood_loss(model, OPTIONS, params, None)


def test_energies_on_a_frozen_backbone_have_its_precision(x64):
    model, learner = second_stage()
    state = start(model, learner, dtype=np.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params.energy)} == {
        jnp.dtype("float32")
    }


def test_penalty_that_begins_needs_one_to_change_to():
    with pytest.raises(ValueError, match="needs a spectral_penalty"):
        learning.WarmUp(kl_steps=10, spectral_penalty_start=0.1)
