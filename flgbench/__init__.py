"""flgbench: how much faster can an image+text-to-video diffusion transformer become, by which method, at what loss?"""

__version__ = "0.1.0"
