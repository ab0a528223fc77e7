"""What the training job is made of on its node: driver, workers, checkpoints, events."""
