"""The families, and which of them is meant where none is named."""

DEFAULT_FAMILY = "wanx"
