"""Compares every prior of `jebm.priors` on one frozen generator."""
