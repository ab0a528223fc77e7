"""A run shown while it trains: in MLflow, as TensorBoard event files, in Weights & Biases (``train.report_to``).

Only the process that waits for the training job comes here. It reads what the job has written into the run's folder,
so that no step ever waits for a tracking server, and one that is away costs a delay: what it missed is sent later.
"""
