"""Pages on which an atlas's features are looked through, from the results of its analysis."""
