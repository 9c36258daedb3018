"""The trials: Ray Tune around them, and the trainings that make up each."""
