"""A bridge to VBench-I2V, which has to run in an environment of its own: export clips, call its script, read its scores.

VBench 0.1.5 pins numpy < 2 and transformers 4.33, so it can never be installed beside this package. Nothing here computes
a VBench score; what is read from its file is normalised and weighted as its own scripts do.
"""
