"""Which trial is chosen: the written rules."""
