"""Scored samples in, weights out: the table of algorithms, packing, FSDP training."""
