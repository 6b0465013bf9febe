"""Data pipeline: text of several domains → documents → ids of the merged vocabulary → token files → batches."""
