"""The network: PanGu-α's decoder whose upper FFNs are groups of experts. Start with `pangu_sigma.py`."""
