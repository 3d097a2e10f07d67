"""Street scenes of CamVid, segmented by a FasterViT under UPerNet."""
