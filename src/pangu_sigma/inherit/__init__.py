"""Idea 1 of the paper: PanGu-Σ starts from a trained dense PanGu-α, and step 0 answers as its parent does."""
