"""What is measured: networks on backends, training steps in our order and in the published one."""
