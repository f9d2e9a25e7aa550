"""One-shot scripts; each tells its command."""
