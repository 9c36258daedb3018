"""The fused passes of a packed step: Triton kernels, and what they do in plain torch.

Each pass is a function of tensors. On a GPU with Triton it launches a kernel; elsewhere plain torch does
the same, slower. No pass reads a number of the device, none adds floats in an order that may change.
"""
