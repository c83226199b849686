"""Can this machine do the work? ``cov3d doctor``: one look after another, each with what to do."""
