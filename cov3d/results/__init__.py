"""The station of results: from a model and scans to answers."""
