"""The trials: how Ray Tune runs them, and the trainings that each is made of."""
