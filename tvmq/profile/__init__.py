"""Where the time goes: per layer, as table, JSON, trace and page."""
