"""Evaluations of a model at any length, under several kinds of attention side by side.

One file each: `perplexity` (figure 5, table 4 of LM-Infinite, arXiv 2308.16137), `passkey` and `needle` (what is found again,
by length and depth), `speed`. `settings` names the kinds of attention; `plot` alone imports matplotlib. Every evaluation gives
dataclasses whose `as_dict` is what the command line writes as JSON and what `plot` reads.
"""
