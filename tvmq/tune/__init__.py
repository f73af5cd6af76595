"""Better choices than the compiler's rules: the search for them, and what is kept of it."""
