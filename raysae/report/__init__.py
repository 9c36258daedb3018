"""The report: plots and one page, made from a run folder's records alone."""
