"""Normal forms of the integer module: each file writes one (``emit``) and reads it (``match``).

What is written is read back, and what is only like it is refused with a reason, so a layer is never
read as something else than the Relax computes. ``rounding``, ``term`` and ``padding`` are parts
that several forms share.
"""
