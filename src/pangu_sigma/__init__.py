"""PanGu-Σ: sparse language models with Random Routed Experts on MindSpore."""
