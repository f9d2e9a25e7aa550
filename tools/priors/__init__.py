"""Every prior of `jebm.priors` on one frozen generator, side by side."""
