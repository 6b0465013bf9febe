"""Which rank holds and computes what: shares of data and experts, and how MindSpore cuts the network on Ascend."""
