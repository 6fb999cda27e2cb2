"""PyTorch network to ONNX file, in fp32, fp16 and bf16."""
