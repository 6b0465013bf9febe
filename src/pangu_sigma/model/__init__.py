"""The network: PanGu-α's decoder with groups of experts as the FFNs of its upper layers. Start with `pangu_sigma.py`."""
