"""What training says on the screen."""

import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping

import jax
from clu import parameter_overview
from tqdm import tqdm

import jebm
from jebm.energies import Conv, Layerwise
from jebm.kernels import Chain

_MOST_ROWS = 20  # of a table of parameters
_STIFF = 0.5
# A metric, its label, and the width and decimals of its column.
_COLUMNS = (
    ("loss_nats", "loss", 10, 2),
    ("energy_gap_nats", "gap", 8, 3),  # E- minus E+
    ("images_per_second", "images/s", 8, 0),
)


def progress_bar(step: int, last: int, silent: bool = False) -> tqdm:
    """Returns the bar of steps; without a terminal there is none."""
    columns = shutil.get_terminal_size((120, 24)).columns  # some terminals say 0
    return tqdm(
        initial=step, total=last, unit="step", ncols=columns,
        disable=True if silent else None,
    )  # fmt: skip


def show(progress: tqdm, step: int, values: dict[str, float]) -> None:
    """Shows the metrics of an interval: beside the bar, or as a line."""
    shown = [column for column in _COLUMNS if column[0] in values]
    text = "  ".join(
        f"{label} {_fixed(values[name], width, decimals)}"
        for name, label, width, decimals in shown
    )
    progress.set_postfix_str(" ".join(text.split()))
    if progress.disable:  # not a terminal
        width = len(str(progress.total))
        print(f"step {step:{width}}/{progress.total}  {text}", flush=True)


def _fixed(value, width, decimals):
    """Formats a number in a column; one that is too long loses its decimals."""
    text = f"{value:,.{decimals}f}"
    return f"{text if len(text) <= width else f'{value:.3g}':>{width}}"


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
    layerwise = isinstance(model.energy, Layerwise | Conv)
    print(f"image {model.image_shape}, {len(shapes)} layers of latents, top first:")
    for i in reversed(range(len(shapes))):
        above = "N(0, I)" if i == len(shapes) - 1 else f"p(z_{i + 1} | above)"
        energy = f" exp(f_{i + 1}(z_{i + 1}))" if layerwise else ""
        print(f"  z_{i + 1}  {shapes[i]!s:12} {above}{energy}")
    if model.energy is not None and not layerwise:
        print(
            f"  times exp(-E) of one {type(model.energy).__name__} energy of all layers"
        )
    print(f"{sum(map(math.prod, shapes))} latent units in all")
    if len(jax.tree.leaves(params)) <= _MOST_ROWS:
        table = parameter_overview.get_parameter_overview
        print(table(params._asdict(), include_stats=False))
        return
    counts = _by_module(params)
    total = sum(counts.values())
    width = max(map(len, counts))
    print(f"  {'module':{width}} {'parameters':>13}   share")
    for name, count in (counts | {"total": total}).items():
        print(f"  {name:{width}} {count:13,} {count / total:7.1%}")


def _by_module(params: jebm.Params) -> dict[str, int]:
    """Counts the parameters of each module, in at most `_MOST_ROWS` rows.

    Where there are more modules, numbered ones share a row; where these are still too
    many, there is a row for the backbone and one for the energy.
    """
    sizes = {
        (part, name): sum(a.size for a in jax.tree.leaves(leaves))
        for part, variables in params._asdict().items()
        for name, leaves in variables.get("params", {}).items()
    }
    numbered = re.compile(r"_\d+$")
    foldings: tuple[Callable[[str, str], str], ...] = (
        lambda part, name: f"{part}/{name}",
        lambda part, name: f"{part}/{numbered.sub('_*', name)}",
        lambda part, name: part,
    )
    for folding in foldings:
        counts: Counter[str] = Counter()
        for path, size in sizes.items():
            counts[folding(*path)] += size
        if len(counts) <= _MOST_ROWS:
            break
    return dict(counts)
