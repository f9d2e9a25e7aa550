"""A data set by its name, with the defaults of all other options."""

from experiments.configs import default
from experiments.options import Data


def named(name: str, data_dir: str | None = None) -> Data:
    """Returns config.data of a data set, as it is by default.

    Example:
      >>> named("digits").labels
      ()
    """
    fields = default.get_config().data.to_dict()
    return Data.of(fields | {"name": name, "data_dir": data_dir})
