"""The scan: Ray Data reads a split once for all trials that are at work on it."""
