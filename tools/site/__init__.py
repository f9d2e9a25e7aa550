"""Documentation as pages."""
