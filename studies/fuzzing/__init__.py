"""Fuzzing of what reads other people's bytes: the image decoder and the checkpoint reader."""
