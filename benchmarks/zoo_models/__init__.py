"""The models of `zoo.py`: those of KerasHub, and those written here as users of Keras write theirs."""
