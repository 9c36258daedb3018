"""What the phase ``labels`` knows of each feature, from one pass over a site's rows."""
