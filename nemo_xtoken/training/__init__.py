"""What every training loop shares: batches, inputs, lessons, the step, and the CPU runtime."""
