"""Operators of this project: expert FFN over sorted rows, dispatch and combine, Adam on host rows, dropout, decoding on CPUs."""
