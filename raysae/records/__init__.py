"""What a run leaves behind: its folder, its commits, its environment, its MLflow runs."""
