"""How the public base network is made: `sgps pretrain base`.

EfficientNet-Lite0 is transplanted into EfficientNet-V2-B0, distilled, fine-tuned briefly on public images in four ways, and
the four sets of weights are averaged. Importing this package imports no torch.
"""
