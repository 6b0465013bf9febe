"""Expert Computation and Storage Separation: experts live on the host; a step fetches, and updates, the active ones only."""
