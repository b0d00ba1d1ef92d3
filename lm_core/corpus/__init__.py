"""From sources to documents that each have one fate: collect, clean, deduplicate, decontaminate, ledger."""
