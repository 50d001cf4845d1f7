"""Images that are copies of each other: found, proved, and told of."""
