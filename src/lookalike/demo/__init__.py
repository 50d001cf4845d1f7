"""The main job on invented images: no network, no weights, no data set needed."""
