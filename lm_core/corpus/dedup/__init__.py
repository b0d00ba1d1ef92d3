"""Exact and near copies, contained texts, repeated passages.

shingles     words of a text as hashes, and their overlapping runs
sketch       from shingles: content hash, MinHash band keys, a sample of shingles
sketching    sketches of all documents, from the index or from their texts
hash_tables  identities and hashes to be looked up by millions
segments     what was computed of documents, on disk from run to run; index keeps sketches and findings in them
containment  which texts may lie within another, from the samples
greedy       who stays, by exact overlaps
update       which documents have to do with what came or went since the last run
clusters     kept documents that are similar, and their splits
search       all of it, part by part and within bounded memory; means: threads and room
passages     boilerplate lines and repeated passages of what was kept; passage_store keeps what was read
texts        texts that are read where they are needed
"""
