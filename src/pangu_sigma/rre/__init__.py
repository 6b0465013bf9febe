"""Random Routed Experts: domain → group of experts → one expert by a fixed table. Pure NumPy, known when the batch is read."""
