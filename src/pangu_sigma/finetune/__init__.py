"""Fine-tuning: the training loop on the samples of a task, of which the answers alone count."""
