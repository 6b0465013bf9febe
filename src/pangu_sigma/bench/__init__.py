"""The benches of `pangu-sigma bench`: our speed as ratios against peers that take turns with ours on the same data."""
