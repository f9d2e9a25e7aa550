"""Learns one prior for a number of seconds; a killed run resumes from its last save."""

import dataclasses
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.data.pixels import to_unit
from experiments.runtime.files import read_json, write_json
from jebm import checkpoints, priors

_SAVE_EVERY = 60.0  # seconds
_TIMED = 3.0  # seconds of updates that tell how many fit


@dataclasses.dataclass(frozen=True)
class Data:
    """What priors learn from: the noise behind images, drawn once and for all.

    Attributes:
      eps: flat, float32 [passes, N, size].
      images: uint8 [N, H, W, C].
    """

    eps: jax.Array
    images: jax.Array

    def without(self, keep: np.ndarray) -> "Data":
        """Returns those of the images that `keep` [N] says."""
        return Data(self.eps[:, keep], self.images[keep])


def learn(
    name: str,
    prior: priors.Prior,
    frozen: priors.Frozen,
    data: Data,
    *,
    seed: int,
    seconds: float,
    batch_size: int,
    path: pathlib.Path,
) -> tuple[priors.Law, dict[str, Any]]:
    """Learns for `seconds` of updates and saves the state in `path`.

    How many updates fit is timed first, so that rates fall to their end in time. What
    is in `path` is read: a run that was killed goes on from its last save.

    Returns:
      The law, and "updates", "seconds" and the last numbers of learning.
    """
    key = jax.random.fold_in(jax.random.key(seed), 1)
    start = _start(key, frozen, data, batch_size)
    plan = path / "plan.json"
    if not plan.is_file():
        num, each = _how_many(key, prior, frozen, data, start, seconds, batch_size)
        path.mkdir(parents=True, exist_ok=True)
        facts = {"prior": name, "seed": seed, "num_steps": num, "update_s": each}
        write_json(plan, facts)
    num = read_json(plan)["num_steps"]
    prior = fitted(prior, num)
    state = prior.init(key, frozen, start)
    first, state = _restored(path, state)
    if not jax.tree.leaves(state):  # nothing to learn
        return priors.Law(prior, frozen, state), {"updates": 0, "seconds": 0.0}
    arguments = key, frozen, state, data.eps, data.images
    update = _update_fn(prior, batch_size).lower(*arguments, first).compile()
    spent, begun, saved, info = _spent(path), time.monotonic(), time.monotonic(), {}
    with (
        checkpoints.manager(path, 2) as manager,
        tqdm(total=num, initial=first, desc=name, unit="update", leave=False) as bar,
    ):
        for step in range(first, num):
            state, info = update(key, frozen, state, data.eps, data.images, step)
            bar.update()
            if step % 50 == 0:
                jax.block_until_ready(state)
            if time.monotonic() - saved > _SAVE_EVERY and step + 1 < num:
                _save(manager, path, step + 1, state, spent + time.monotonic() - begun)
                saved = time.monotonic()
        jax.block_until_ready(state)
        if first < num:
            spent += time.monotonic() - begun
            _save(manager, path, num, state, spent)
    numbers = {k: float(v) for k, v in info.items() if np.ndim(v) == 0}
    facts = {"updates": num, "seconds": spent, **numbers}
    return priors.Law(prior, frozen, state), facts


def fitted(prior: priors.Prior, num: int) -> priors.Prior:
    """Returns the prior whose rates fall over `num` updates, and those inside it."""
    if not dataclasses.is_dataclass(prior):
        return prior
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(prior):
        value = getattr(prior, field.name)
        if field.name == "num_steps":
            changes["num_steps"] = num
        elif isinstance(value, priors.Prior):
            changes[field.name] = fitted(value, num)
    return dataclasses.replace(prior, **changes)


def _start(key, frozen, data, batch_size):
    """Returns some draws to start from: as many as an init may want, a few thousand."""
    num = min(max(batch_size, 2000), data.eps.shape[1])
    chosen = jax.random.choice(key, data.eps.shape[1], (num,), replace=False)
    eps = frozen.layers(data.eps[0, chosen])
    return priors.Draws(eps, to_unit(data.images[chosen]))


def _update_fn(prior, batch_size):
    @jax.jit
    def update(key, frozen, state, eps, images, step):
        passes, num, _ = eps.shape
        key_batch = jax.random.fold_in(jax.random.fold_in(key, 2), step)
        key_pass, key_image = jax.random.split(key_batch)
        which = jax.random.randint(key_pass, (batch_size,), 0, passes)
        image = jax.random.randint(key_image, (batch_size,), 0, num)
        draws = priors.Draws(frozen.layers(eps[which, image]), to_unit(images[image]))
        return prior.update(key, frozen, state, draws)

    return update


def _how_many(key, prior, frozen, data, start, seconds, batch_size):
    """Measures how many updates fit, and the seconds of one, by some it throws away."""
    state = prior.init(key, frozen, start)
    if not jax.tree.leaves(state):
        return 0, 0.0
    update = _update_fn(prior, batch_size)
    state, _ = update(key, frozen, state, data.eps, data.images, 0)
    jax.block_until_ready(state)
    # The fastest of several: other work on the machine must not cost a prior updates.
    begun, done, fastest = time.monotonic(), 1, float("inf")
    while time.monotonic() - begun < min(_TIMED, seconds) or done < 4:
        before = time.monotonic()
        state, _ = update(key, frozen, state, data.eps, data.images, done)
        jax.block_until_ready(state)
        fastest, done = min(fastest, time.monotonic() - before), done + 1
    return max(1, int(seconds / fastest)), fastest


def _save(manager, path, step, state, spent):
    leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    checkpoints.write(manager, step, {"train_state": leaves})
    write_json(path / "spent.json", {"seconds": spent})


def _spent(path):
    file = path / "spent.json"
    return read_json(file)["seconds"] if file.is_file() else 0.0


def _restored(path, state):
    if not checkpoints.steps(path):
        return 0, state
    leaves, tree = jax.tree.flatten(state)
    template = {str(i): leaf for i, leaf in enumerate(leaves)}
    step, items = checkpoints.restore(path, {"train_state": template})
    saved = items["train_state"]
    restored = [jnp.asarray(saved[str(i)]) for i in range(len(leaves))]
    return step, jax.tree.unflatten(tree, restored)
