"""`pangu-sigma bench`: our speed as ratios against peers that run in the same process, in turn, on the same data."""
