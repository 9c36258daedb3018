"""Detection: whether a label of a sequence can be read from features, activations and simple baselines.

``examples`` are the labelled sequences with their folds, ``pooling`` and ``inputs`` what is read of each,
``probes`` the models and their out-of-fold predictions, ``scores`` the figures with their intervals.
"""
