"""Launcher: starts a run's ranks as processes on every node, watches them, stops them together, and restarts them."""
