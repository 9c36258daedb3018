"""Which configs are tried: the search space and Optuna's proposals."""
