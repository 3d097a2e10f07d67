"""Imagenette at 128 x 128: a FasterViT from scratch beside peers of the same cost."""
