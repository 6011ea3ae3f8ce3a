"""Data sets: images on disk and in stores, decoding, batches on the device, preparation."""
