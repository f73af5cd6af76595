"""Where the time goes: per layer, as numbers, table, JSON and trace."""
