"""Starting the training job and staying with it: :func:`pipeline.launch.follow.train`."""
