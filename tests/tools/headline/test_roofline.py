import jax
import jax.numpy as jnp
import pytest

from experiments import options
from experiments.configs import test
from experiments.models import build_model
from tools.headline import roofline

_X = jax.ShapeDtypeStruct((16, 16), jnp.float32)
_PRODUCT = 2 * 16**3


def repeated(function, length):
    return lambda x: jax.lax.scan(lambda c, _: (function(c), None), x, length=length)[0]


def test_loops_count_as_often_as_they_run_whatever_is_around_them():
    def once(x):
        return x @ x

    nested = repeated(jax.jit(repeated(once, 3)), 5)
    for function, products in (
        (once, 1),
        (repeated(once, 7), 7),
        (nested, 15),
        (lambda x: jax.checkpoint(nested)(x) + once(x), 16),
        (lambda x: jax.lax.cond(x[0, 0] > 0, nested, lambda x: x, x), 15),
    ):
        found = roofline.flops(function, _X)
        # Counters of loops and the sum are operations too.
        assert products * _PRODUCT <= found < products * _PRODUCT * 1.05


def test_gradients_through_a_loop_count():
    def loss(x):
        return repeated(lambda c: x @ c, 10)(x).sum()

    found = roofline.flops(jax.grad(loss), _X)
    assert 29 * _PRODUCT <= found < 31 * _PRODUCT  # each step forwards, and two back


@pytest.mark.slow
def test_a_step_of_longer_chains_has_as_many_more_flops():
    config = test.get_config()
    model_shape = (8, 8, 1)

    def of(num_steps):
        config.chains.posterior.num_steps = num_steps
        experiment = options.read(config)
        return roofline.step_flops(
            experiment.learning, build_model(experiment, model_shape)
        )

    short, longer, longest = of(5), of(10), of(20)
    assert 0 < short < longer < longest
    assert (longest - longer) == pytest.approx(2 * (longer - short), rel=0.01)


def test_peak_is_of_this_machine():
    assert 1e7 < roofline.peak("float32", side=128) < 1e14
