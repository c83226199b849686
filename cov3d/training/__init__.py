"""The station of training: from labelled scans to a model."""
