"""The figures of a run: each a module of what it computes and how it is drawn."""
