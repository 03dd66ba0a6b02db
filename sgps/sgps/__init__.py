"""The science of SGPS: a generator that writes a complete EfficientNet-V2 classifier from one exemplar image and a clinical text.

Importing this package imports no torch; `sgps.synthesis`, `sgps.generator` and `sgps.encoders` do.
"""
