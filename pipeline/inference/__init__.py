"""Inference with trained models: ``agit translate`` (images, videos, Ray batches) and ``agit export``."""
