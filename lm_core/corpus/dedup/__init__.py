"""Exact and near copies, contained texts, repeated passages.

shingles     words of a text as hashes, and their overlapping runs
sketch       from shingles: content hash, MinHash band keys, a sample of shingles
index        sketches and overlaps that earlier runs have computed
containment  which texts may lie within another, from the samples
greedy       who stays, by exact overlaps
search       all of it, part by part and within bounded memory
passages     boilerplate lines and repeated passages of what was kept; passage_store keeps what was read
texts        texts that are read where they are needed
"""
