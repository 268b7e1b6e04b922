"""The parts of `tools/docs.py`: what stands in the repository becomes the source of a web site."""
