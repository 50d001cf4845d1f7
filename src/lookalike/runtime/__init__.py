"""Where and how the arithmetic runs: device, precision, memory, randomness, other processes."""
