"""Which trial is chosen: the rules of selection."""
