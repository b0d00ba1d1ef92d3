"""Pictures with words: a patch encoder, two ways to give what it sees to the decoder, and the controls."""
