"""Metrics: catalogue, computation, and formatting for reports, tables and model cards."""
