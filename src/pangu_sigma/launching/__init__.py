"""The launcher of ranks as processes: it starts them on every node, watches over them, ends them together, starts them again."""
