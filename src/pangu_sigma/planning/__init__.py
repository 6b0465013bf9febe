"""The plan of a configuration: its needs on Ascend NPUs, counted in Python, and its step compiled by MindSpore without a device."""
