"""The report: plots and one page, made only from the records in a run folder."""
