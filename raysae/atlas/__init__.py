"""The sweet spot, trained at every layer and position."""
