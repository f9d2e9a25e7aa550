"""Getting data and statistics of it."""
