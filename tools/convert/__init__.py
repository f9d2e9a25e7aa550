"""Converting published weights."""
