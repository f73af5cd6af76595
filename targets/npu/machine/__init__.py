"""The machine itself: its description, instructions, encoding, rules, and programs."""
