"""Prefect's side: the flows, what they show in its pages, and the server of a run that has none."""
