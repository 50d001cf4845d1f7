"""Fine-tuning: the loss, the optimiser, checkpoints and the loop. Prints nothing."""
