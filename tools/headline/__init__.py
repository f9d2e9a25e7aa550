"""Half an hour of an accelerator: trains, measures, and packs what is worth keeping."""
