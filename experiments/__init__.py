"""Experiments: from a config file to a run directory that explains itself."""
