"""What a configuration needs on Ascend NPUs, counted in Python, and the same step compiled by MindSpore without a device."""
