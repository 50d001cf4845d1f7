"""The main job on invented pictures: no network, no weights, no data set needed."""
