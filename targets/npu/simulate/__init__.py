"""What instructions do, in NumPy: the definition."""
