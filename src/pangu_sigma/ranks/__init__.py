"""Processes that train together: who holds what, sums over ranks, and how ranks are started and watched."""
