"""Pages on which the features of an atlas are looked through, written from the results of its analysis."""
