"""The main job: its plan, its stages and its result."""
