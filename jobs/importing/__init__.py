"""Pictures of this and other programs become entries of a manifest."""
