"""Prefect tasks around the stages, tracking and the registry in MLflow, the local servers."""
