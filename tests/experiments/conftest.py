"""What only the tests of the experiments need."""

import jax
import pytest

from experiments import train

# Tiny models: these tests compile for longer than they compute.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session", autouse=True)
def lenient_optimizer():
    """Lets optax raise a float to the power of an int32; all else stays strict."""
    apply_gradients = train.TrainState.apply_gradients

    def lenient(self, *, grads, **kwargs):
        with jax.numpy_dtype_promotion("standard"):
            return apply_gradients(self, grads=grads, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.TrainState, "apply_gradients", lenient)
        yield
