"""Launching and following the training job: :func:`pipeline.launch.follow.train`."""
