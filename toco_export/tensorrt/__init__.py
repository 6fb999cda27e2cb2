"""ONNX file to TensorRT engine, here or in NVIDIA's container."""
