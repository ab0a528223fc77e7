"""Model registry: versions, champion and challenger, and the gate's decisions, in MLflow and in storage."""
