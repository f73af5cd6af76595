"""Normal forms of the integer module."""
