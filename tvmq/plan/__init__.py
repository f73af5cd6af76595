"""The plan: every step, the integers that follow from it, and the graph annotated with them."""
