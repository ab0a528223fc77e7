"""Models behind HTTP, on loopback: MLflow's protocol and a page to try them."""
