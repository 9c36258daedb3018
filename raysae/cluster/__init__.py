"""Ray: joining it, what fits on it, what a worker takes from it."""
