"""The network: ViT backbone, segmentation decoder, projection head, and weights from elsewhere."""
