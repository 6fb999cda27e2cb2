"""Data sources (VOC devkit, folder of tagged photos), augmentation and loading."""
