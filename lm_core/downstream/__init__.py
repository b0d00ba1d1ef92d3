"""Downstream tasks: examples made from documents, fine-tuning."""
