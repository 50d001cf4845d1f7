"""From files to batches of pixels: decoding, keeping what was decoded, the readers."""
