"""What training says on the screen."""

import math
import shutil
from collections.abc import Mapping

import jax
from clu import parameter_overview
from tqdm import tqdm

import jebm
from jebm.kernels import Chain

_MANY = 200  # arrays of parameters: more than anyone reads
_STIFF = 0.5
_SHOWN = {
    "loss_nats": "loss",
    "log_likelihood_nats": "log p(x|z)",
    "energy_positive_nats": "E+",
    "energy_negative_nats": "E-",
    "images_per_second": "images/s",
}


def progress_bar(step: int, last: int, silent: bool = False) -> tqdm:
    """Returns the bar of steps; without a terminal there is none."""
    columns = shutil.get_terminal_size((120, 24)).columns  # some terminals say 0
    return tqdm(
        initial=step, total=last, unit="step", ncols=columns,
        disable=True if silent else None,
    )  # fmt: skip


def show(progress: tqdm, step: int, values: dict[str, float]) -> None:
    """Shows the metrics of an interval: beside the bar, or as a line."""
    shown = {label: values[name] for name, label in _SHOWN.items() if name in values}
    text = ", ".join(f"{label} {_short(value)}" for label, value in shown.items())
    progress.set_postfix_str(text)
    if progress.disable:  # not a terminal
        print(f"step {step}/{progress.total}: {text}", flush=True)


def _short(value):
    """Formats three digits of it, and all those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def warn_of_stiffness(
    progress: tqdm,
    step: int,
    values: dict[str, float],
    chains: Mapping[str, Chain],
    warned: set[str],
) -> None:
    """Says once per chain that its step size nears what the density allows.

    A chain whose steps are tested cannot blow up.
    """
    for chain in (name for name, value in chains.items() if not value.adjusted):
        stiffness = values.get(f"{chain}_stiffness", 0.0)
        if stiffness > _STIFF and chain not in warned:
            warned.add(chain)
            progress.write(
                f"warning: at step {step} the {chain} chain has a stiffness of "
                f"{stiffness:.2f} (s^2/4 times the largest curvature); it is unstable "
                f"from 1 on. A smaller chains.{chain}.step_size is safer."
            )


def print_overview(model: jebm.Model, params: jebm.Params) -> None:
    """Prints the layers of latents with their priors, and the parameters."""
    shapes = model.backbone.latent_shapes
    print(f"image {model.image_shape}, {len(shapes)} layers of latents, top first:")
    for i in reversed(range(len(shapes))):
        above = "N(0, I)" if i == len(shapes) - 1 else f"p(z_{i + 1} | above)"
        energy = "" if model.energy is None else f" exp(f_{i + 1}(z_{i + 1}))"
        print(f"  z_{i + 1}  {shapes[i]!s:12} {above}{energy}")
    print(f"{sum(map(math.prod, shapes))} latent units in all")
    if len(jax.tree.leaves(params)) <= _MANY:
        print(
            parameter_overview.get_parameter_overview(
                params._asdict(), include_stats=False
            )
        )
        return
    counts = {
        f"{part}/{name}": sum(a.size for a in jax.tree.leaves(leaves))
        for part, variables in params._asdict().items()
        for name, leaves in variables.get("params", {}).items()
    }
    width = max(map(len, counts))
    print("\n".join(f"  {n:{width}} {count:>12,}" for n, count in counts.items()))
    print(f"{sum(counts.values()):,} parameters")
