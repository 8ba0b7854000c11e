"""Methods without a network, to compare with."""
