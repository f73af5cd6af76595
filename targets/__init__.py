"""Hardware: arithmetic, machine descriptions, compilers and simulators. Knows nothing of models."""
