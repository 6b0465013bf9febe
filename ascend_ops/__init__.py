"""Operators of this project: the expert FFN over sorted rows, rows moved to experts and back, Adam on host rows."""
