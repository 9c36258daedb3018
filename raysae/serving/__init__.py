"""``raysae serve``: a run's features looked at in a browser, with texts of one's own, on this machine."""
