"""Training: from labelled scans to a model."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # fastai uses what torch and pandas have deprecated
    import fastai.callback.schedule
    import fastai.learner  # noqa: F401
