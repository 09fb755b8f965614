"""Multi-objective search with Optuna: the space, the study in a file, and what it found."""
