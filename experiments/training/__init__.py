"""Learning a run."""
