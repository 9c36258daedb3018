"""Ray: connecting to it, placing workers on it, running work on it."""
