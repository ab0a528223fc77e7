"""Versions of models, who is champion, and why: files in the storage and MLflow."""
