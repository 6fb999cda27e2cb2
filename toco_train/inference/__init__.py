"""What a trained network makes of images: predictions, pseudo labels, previews."""
