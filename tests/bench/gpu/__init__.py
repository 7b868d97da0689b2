"""The CUDA path measured and checked beside its peers, as JSON, within eight minutes on a card."""
