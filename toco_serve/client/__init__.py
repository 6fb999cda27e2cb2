"""The clients: images in, segmentations out, over gRPC."""
