"""Ranks as processes: started on every node, watched over, ended together, started again."""
