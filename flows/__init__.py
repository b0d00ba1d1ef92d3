"""Composition in straight lines: the wiring of the pipeline, its configuration and presets, the command line."""
