"""The modern decoder, the textbook Transformer, generation, export."""
