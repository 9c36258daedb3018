"""Controls: what explains the same rows without having learned a dictionary of them."""
