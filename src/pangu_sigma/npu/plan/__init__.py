"""Planning: a configuration's memory, traffic and step time on NPUs, and its step compiled by MindSpore without a device."""
