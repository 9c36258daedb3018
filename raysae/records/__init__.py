"""The records of a run: its folder, its commits, its environment, its MLflow runs."""
