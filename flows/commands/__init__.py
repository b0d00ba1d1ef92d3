"""The commands, a module for each group; each module adds its own to the parser."""
