"""The main job: what it will do, its stages, and what it came to."""
