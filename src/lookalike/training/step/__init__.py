"""One step of training: a batch of any size, in memory that is there, by one process or many."""
