"""The declared downstream tasks, one module for each group of kinds; each module holds a tuple TASKS."""
