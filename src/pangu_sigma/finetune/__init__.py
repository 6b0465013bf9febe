"""Fine-tuning: the training loop on the samples of a task, with the loss on the answers only."""
