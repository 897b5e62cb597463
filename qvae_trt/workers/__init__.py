"""Processes that do one request after the other: `parent` asks, `child` answers."""
