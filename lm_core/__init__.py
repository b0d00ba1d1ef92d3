"""Every computation: artifacts and their store, corpus, tokenizer, model, training, downstream tasks, evaluation."""
