"""Where the course of a run is kept beside its own files: TensorBoard, W&B, MLflow, Trackio."""
