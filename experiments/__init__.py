"""Experiments: they turn a config file into a run directory that explains itself."""
