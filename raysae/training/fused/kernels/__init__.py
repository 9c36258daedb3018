"""The kernels of the fused passes, in Triton: importing one of these modules needs it.

Each program of a kernel has a row of something; no two programs add to the same number, so that the same
arguments give the same bits. A row is read in parts that fit a program's registers.
"""
